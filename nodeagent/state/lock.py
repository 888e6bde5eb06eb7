"""One agent a node: an exclusive lock that the kernel drops when its holder dies, however it dies."""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from nodeagent.errors import AnotherAgentError

_POLL: Final = 0.1
_NAME: Final = "agent.lock"
_MODE: Final = 0o660
"""Its group as well: in a cluster the agent is nobody, and who uninstalls is root without the right to ignore that."""


class Lock:
    """Holds ``agent.lock`` in a directory until closed.

    Children that are started by ``exec`` do not inherit it.
    """

    def __init__(self, directory: Path, wait: float = 0) -> None:
        """Take the lock, within *wait* seconds.

        Raises:
            AnotherAgentError: somebody else has it; the message says who.
            OSError: the file cannot be made.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW  # root uninstalls, in a folder of the agent's
        self._fd = os.open(directory / _NAME, flags, _MODE)
        with suppress(PermissionError):  # it was another user's of our group
            os.fchmod(self._fd, _MODE)
        deadline = time.monotonic() + wait
        while not self._try():
            if time.monotonic() >= deadline:
                holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
                os.close(self._fd)
                raise AnotherAgentError(
                    f"{directory}: another agent is at work here (process {holder}): end it, or give this one a "
                    "directory and pods of its own"
                )
            time.sleep(_POLL)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def holder(directory: Path) -> str | None:
    """Return the process that holds the lock in *directory*, as it says itself; None if nobody does.

    Taking the lock to find out would keep an agent away that starts at this moment: the kernel's list tells
    (proc_locks(5): number, FLOCK, ADVISORY, WRITE, process, device and inode).
    """
    try:
        found = (directory / _NAME).stat()
        where = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        held = (line.split()[1:6] for line in Path("/proc/locks").read_text("ascii", "replace").splitlines())
        if all(words[:1] != ["FLOCK"] or words[-1] != where for words in held):
            return None
        return (directory / _NAME).read_text("ascii", "replace").strip() or "unknown"
    except OSError:
        return None
