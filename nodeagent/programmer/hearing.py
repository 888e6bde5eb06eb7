"""Hearing the container runtime as the seam offers it: a connection that a child relays, which lets nothing else by."""

import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from nodeagent.errors import BusyError, KernelError
from nodeagent.programmer import relay

_LAST_SECONDS: Final = 0.1
"""For a child whose agent has gone to go as well."""


class NotHearing:
    """A :class:`~nodeagent.programmer.seam.Hearing` that was not told of a runtime."""

    def runtime(self) -> int:
        """See :meth:`Hearing.runtime`."""
        raise BusyError("the programmer was told of no container runtime's socket: give it one (--nri SOCKET)")


class Relayed:
    """A :class:`~nodeagent.programmer.seam.Hearing` of the runtime at *path*; of an agent there is one at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._child: subprocess.Popen[bytes] | None = None

    def runtime(self) -> int:
        """See :meth:`Hearing.runtime`."""
        self.close()
        with socket.socket(socket.AF_UNIX) as runtime:
            runtime.setblocking(False)  # noqa: FBT003  # the standard library's signature
            try:
                runtime.connect(str(self._path))
            except FileNotFoundError:
                raise BusyError(f"{self._path} is not there: is NRI switched on in the container runtime?") from None
            except OSError as error:
                raise KernelError(f"{self._path}: {error.strerror or error}") from None
            ours, theirs = socket.socketpair()
            with theirs:
                self._child = subprocess.Popen(  # our own interpreter and file
                    [sys.executable, "-I", "-S", relay.__file__, str(runtime.fileno()), str(theirs.fileno())],
                    pass_fds=[runtime.fileno(), theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
        return ours.detach()

    def close(self) -> None:
        """End the connection that there is."""
        if self._child:
            with suppress(subprocess.TimeoutExpired):
                if self._child.wait(_LAST_SECONDS) == relay.NOT_SAYABLE:
                    log = structlog.get_logger()
                    log.error("the agent has said to the container runtime what no agent of ours says")
            self._child.kill()
            self._child.wait()
        self._child = None
