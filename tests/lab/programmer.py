"""A running `nodeagent programmer`, as in a container: no process of the machine has a number in its PID namespace.

with RunningProgrammer(tmp_path, cgroup.path) as running, closing(running.connect()) as programmer:
    programmer.backends()
"""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from nodeagent.errors import UnreachableError
from nodeagent.programmer.connection import ConnectedProgrammer
from tests.lab.agent import NODEAGENT
from tests.lab.process import LabError

_PATIENCE = 60.0
_ALONE = (
    # The shell stands for the node's first process, in the host's network: the machine's own may not be open to us.
    'mount --bind /proc "$1" && mount --bind /proc/$$ "$1/1" && shift && '
    'exec unshare --pid --fork --kill-child --mount-proc -- "$@"'
)


class RunningProgrammer:
    """One programmer below *folder*, which finds pods below *cgroup*; it may be killed and started again."""

    def __init__(self, folder: Path, cgroup: Path, programs: Path | None = None, before: Sequence[str] = ()) -> None:
        """*programs*: where compiled ones are kept; *before*: words to put before its command."""
        self.socket, self.log = folder / "seam.sock", folder / "programmer.log"
        self._proc, self._cgroup, self._before = folder / "proc", cgroup, before
        self._programs = programs or folder / "programs"
        self._proc.mkdir(exist_ok=True)
        self.options: tuple[str, ...] = ()
        """More of its command line, from the next start on."""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("unshare", "--mount", "sh", "-c", _ALONE, "sh", str(self._proc), *self._before),
                    *(*NODEAGENT, "--log-level", "info", "programmer", "--socket", str(self.socket)),
                    *("--agent-uid", str(os.getuid()), "--proc", str(self._proc)),
                    *("--cgroup", str(self._cgroup), "--programs", str(self._programs)),
                    *self.options,
                ],
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    @property
    def pid(self) -> int:
        """Its process id, as the machine has it; ``unshare`` is its parent."""
        assert self._process
        (child,) = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(child)

    def connect(self) -> ConnectedProgrammer:
        """Connect as soon as it serves."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return ConnectedProgrammer(self.socket, os.getuid())
            except UnreachableError as error:
                if time.monotonic() > deadline or self._process is None or self._process.poll() is not None:
                    raise LabError(f"{error}: {self.log.read_text()}") from error
                time.sleep(0.02)

    def ended(self) -> str:
        """Wait until it has ended by itself; return what it said."""
        assert self._process
        self._process.wait(_PATIENCE)
        self._process = None
        return self.log.read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal; return its exit code."""
        assert self._process
        os.kill(self.pid, number)
        code = self._process.wait(_PATIENCE)
        self._process = None
        return code

    def kill(self) -> None:
        """End it at once, if it runs."""
        if self._process:
            self._process.kill()
            self._process.wait()
        self._process = None
