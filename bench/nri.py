"""How long the runtime waits for the plugin, with a handler that does nothing: the protocol's own price."""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from bench.statistics import Samples
from nodeagent.nri import Plugin
from tests.nri.pods import pod
from tests.nri.recorder import Recorder
from tests.nri.runtime import Generations, Runtime


def run(pods: int) -> None:
    """Print the answer's percentiles, as a runtime in another process sees them."""
    print(f"\n## The plugin's answer to RunPodSandbox, {pods} pods in a row\n")
    print("| events come as | p50 ms | p99 ms | longest ms |\n|---|---|---|---|")
    for generation in Generations:
        taken = asyncio.run(_measure(generation, pods))
        how = "a method each" if generation.value.dedicated else "StateChange"
        print(f"| {how} | " + " | ".join(f"{taken.percentile(n) * 1e3:.2f}" for n in (50, 99, 100)) + " |")


async def _measure(generation: Generations, pods: int) -> Samples:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "nri.sock")
        async with Runtime(path, generation) as runtime:
            child = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, str(path))
            try:
                await runtime.plugin()
                taken = Samples(tuple([await _run_pod(runtime, number) for number in range(pods)]))
                assert runtime.dropped == 0
            finally:
                child.kill()
                await child.wait()
            return taken


async def _run_pod(runtime: Runtime, number: int) -> float:
    begin = time.perf_counter()
    await runtime.run_pod(pod(number % 250, excludeOutboundPorts="3306"))
    return time.perf_counter() - begin


if __name__ == "__main__":
    asyncio.run(Plugin(sys.argv[1], Recorder()).run())
