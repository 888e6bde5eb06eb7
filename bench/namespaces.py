"""Many empty pods, cheaply: one process holds a namespace behind each of its descriptors."""

import json
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

_HOLDER = """
import ctypes, json, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
descriptors = []
for number in range(int(sys.argv[1])):
    if libc.unshare(0x40000000):
        raise OSError(ctypes.get_errno(), "unshare")
    descriptors.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
    if sys.argv[2]:
        subprocess.run(["ip", "-batch", "-"], input=sys.argv[2], text=True, check=True)
print(json.dumps(descriptors), flush=True)
sys.stdin.read()
"""


class Namespaces:
    """*count* fresh namespaces, each with *address* on its loopback device, and set up by ip's *batch*, if given."""

    def __init__(self, count: int, address: str = "", batch: Sequence[str] = ()) -> None:
        lines = [*(("link set lo up", f"addr add {address} dev lo") if address else ()), *batch]
        command = [sys.executable, "-c", _HOLDER, str(count), "\n".join(lines)]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        descriptors: list[int] = json.loads(self._holder.stdout.readline())
        self.paths = [f"/proc/{self._holder.pid}/fd/{descriptor}" for descriptor in descriptors]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.communicate("")
