"""A runtime in a process of its own, to be killed: ``python -m tests.nri.process SOCKET POD [POD…]``.

Its pods are what its command line says.  Each line on standard input is the number of one more; it is told to plugins,
then printed.  Where it dies in between, nobody knows whether the pod started: the next process is told.
"""

import asyncio
import sys
from pathlib import Path

from tests.nri.pods import pod
from tests.nri.runtime import Runtime


async def main(path: str, *numbers: str) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with Runtime(Path(path)) as runtime:
        runtime.pods = {pod(int(number)).id: pod(int(number)) for number in numbers}
        await runtime.plugin()
        print("ready", flush=True)
        while line := await reader.readline():
            await runtime.run_pod(pod(int(line)))
            print(int(line), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
