"""The lock that iptables-legacy takes, so that neither loses what the other writes.

It helps among those that see the same file: the node's own tools and CNI plugins, if the
agent is given the host's ``/run/xtables.lock``.  Tools inside a pod see another file; against
them each table is read again right before it is replaced.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

from nodeagent.errors import BusyError, KernelError

_DEFAULT_PATH: Final = "/run/xtables.lock"  # XT_LOCK_NAME of iptables' xshared.h
_STEP_SECONDS: Final = 0.005


def path() -> Path:
    """Return the lock's file: XTABLES_LOCKFILE, as iptables has it since 1.8.6, or the default."""
    return Path(os.environ.get("XTABLES_LOCKFILE", _DEFAULT_PATH))


class XtablesLock:
    """The lock, for one thread of this process; who holds it may take it again."""

    def __init__(self, patience: float) -> None:
        """Wait for others at most *patience* seconds each time."""
        self._patience = patience
        self._depth = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock.

        Raises:
            BusyError: somebody holds it for longer than we wait.
            KernelError: its file cannot be opened.
        """
        with _flock(self._patience) if self._depth == 0 else nullcontext():
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1


@contextmanager
def _flock(patience: float) -> Iterator[None]:
    file = path()
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KernelError(
            f"cannot open the iptables lock {file}: {error.strerror}; mount the host's, or set XTABLES_LOCKFILE"
        ) from None
    try:
        _wait(descriptor, file, patience)
        yield
    finally:
        os.close(descriptor)


def _wait(descriptor: int, file: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"somebody has held the iptables lock {file} for {patience:g} s: nothing was changed, try again"
                ) from None
            time.sleep(_STEP_SECONDS)  # flock(2) has no timeout, and a signal would be the whole process's
        else:
            return
