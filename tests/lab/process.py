"""Children of the test process: one control socket each, and an end that is certain.

A child's standard input is its control socket.  It ends when that socket does, or when the process (not merely
the thread, which is all PR_SET_PDEATHSIG would watch) that started it has gone: see `watch_parent`.
"""

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests.lab.interrupts import interrupts_held
from tests.lab.wire import receive_frame, send_frame

_CHECKOUT = Path(__file__).resolve().parents[2]
_PATIENCE = 60.0
"""Seconds for one answer: for emulated machines; nothing waits so long where things work."""


class LabError(Exception):
    """The lab itself failed, which says nothing about the rules under test: mend the lab or the machine."""


class LabProcess:
    """A running `python -m MODULE`, started inside whatever *within* enters; safe for several threads."""

    def __init__(self, module: str, *arguments: str, within: Sequence[str] = ()) -> None:
        """Start the child; `ready` (or the first `call`) waits for it."""
        self._module = module
        self._lock = threading.RLock()
        self._is_ready = False
        self._process: subprocess.Popen[bytes]
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_PATIENCE)
        command = [*within, sys.executable, "-S", "-m", module, *arguments]
        try:
            with theirs, interrupts_held():
                # A process group of its own: Ctrl-C ends the test process, whose end is what ends the child.
                environment = {**os.environ, "PYTHONPATH": str(_CHECKOUT)}
                self._process = subprocess.Popen(command, stdin=theirs.fileno(), env=environment, process_group=0)
        except BaseException:
            self._control.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def ready(self) -> None:
        """Wait until the child is set up; LabError if it failed to."""
        with self._lock:
            if not self._is_ready:
                self._receive()
                self._is_ready = True

    def call(self, op: str, **arguments: object) -> tuple[Any, list[int]]:
        """Ask the child to do *op*; return its answer and the descriptors it sent; OSError as the child met it."""
        with self._lock:
            self.send(op, **arguments)
            return self._receive()

    def send(self, op: str, **arguments: object) -> None:
        """Ask without waiting for the answer; `receive` fetches it."""
        with self._lock:
            self.ready()
            send_frame(self._control, {"op": op, **arguments})

    def receive(self) -> Any:  # noqa: ANN401 - JSON, as each `op` defines it
        """Wait for the answer to a `send`, however long it takes."""
        with self._lock:
            select.select([self._control], [], [])
            return self._receive()[0]

    def has_answered(self) -> bool:
        """Tell whether `receive` would return at once."""
        return bool(select.select([self._control], [], [], 0)[0])

    def close(self) -> None:
        """End the child and wait for its end; calling it again is harmless."""
        self._control.close()
        try:
            self._process.wait(_PATIENCE / 6)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _receive(self) -> tuple[Any, list[int]]:
        try:
            reply, descriptors = receive_frame(self._control)
        except (EOFError, ConnectionError, TimeoutError) as error:
            message = f"{self._module} (process {self.pid}) gave no answer ({error}): see its standard error"
            raise LabError(message) from error
        if isinstance(reply, dict) and "errno" in reply:
            raise OSError(reply["errno"], reply["error"])
        return reply, descriptors


def control_socket() -> socket.socket:
    """Return, in a child, the control socket that it was given as standard input."""
    return socket.socket(fileno=os.dup(0))


def watch_parent() -> int:
    """Return, in a child, a pidfd that becomes readable when the parent process has gone."""
    return os.pidfd_open(os.getppid())
