"""One agent a node: the second says so, and goes."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from nodeagent.errors import InputError, RefusedError, printable


class NodeLock:
    """Holds *folder* for this process; the kernel lets go of it when the process ends, however it ends.

    Raises:
        RefusedError: another agent holds it.
        InputError: the folder cannot be made or used.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InputError(
                f"{printable(str(folder))}: cannot be used for the agent's state: {error.strerror}"
            ) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._descriptor)
            raise RefusedError(
                f"another agent runs on this node (PID {printable(holder)} holds {printable(str(folder))}): "
                "one is enough; stop it first"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
