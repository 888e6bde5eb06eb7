"""Network namespaces that the container runtime keeps by name, and which of them a process lives in.

To open ``/proc/PID/ns/net``, the kernel waits until that process has ended its exec(2), and a sandbox's process
has next to no share of a busy CPU: 200 to 700 ms were seen, while the runtime waits for us.  ``/proc/PID/net`` waits
for nothing.  The files in it are the namespace's own, and so are their inode numbers
(``proc_net_ns_init`` in ``fs/proc/proc_net.c``): no two namespaces that live have the same ones.

So a namespace among those that are kept is known by the number that it shows to who is in it.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from nodeagent.netns import kernel

_FILE: Final = "net/dev"
_MOST: Final = 10_000
_SETTLED_SECONDS: Final = 0.1
"""From the first sight of a directory's time on: that stays the same for some milliseconds, whatever else changes."""


def number_of(process: int) -> int | None:
    """Return the number of the namespace of a process, whose directory of /proc is open; None if it has ended."""
    try:
        return os.stat(_FILE, dir_fd=process).st_ino
    except OSError:
        return None


def own_number(proc: Path) -> int:
    """Return the number of this thread's namespace, as *proc* shows it."""
    return (proc / "thread-self" / _FILE).stat().st_ino


class _Entry(NamedTuple):
    name: str
    inode: int


class Kept:
    """The namespaces in *directory*; ``look`` enters one that is open, and returns its number, or 0 if it must not.

    What was seen of a name is kept, so that each is entered once.  It is a hint: whoever opens one by it has to
    compare its number again.
    """

    def __init__(self, directory: str, look: Callable[[int], int]) -> None:
        self._directory, self._look = directory, look
        self._numbers: dict[_Entry, int] = {}
        self._entry_of: dict[int, _Entry] = {}
        self._changed, self._changed_at, self._is_settled = 0, 0.0, False

    def open(self, number: int) -> int | None:
        """Return a descriptor of the namespace that had *number* when it was last seen; None if none had."""
        self._update()
        entry = self._entry_of.get(number)
        return self._open(entry) if entry else None

    def _update(self) -> None:
        """Look at the names that are new since the last time, and forget those that have gone."""
        try:
            changed, now = os.stat(self._directory).st_mtime_ns, time.monotonic()  # noqa: PTH116  # at every visit
            if changed == self._changed and self._is_settled:
                return
            if changed != self._changed:
                self._changed, self._changed_at = changed, now
            entries = set(self._entries())
        except OSError:  # the directory is not there
            return
        numbers = {entry: self._numbers.get(entry) or self._number(entry) for entry in entries}
        self._numbers = {entry: number for entry, number in numbers.items() if number}
        self._entry_of = {number: entry for entry, number in self._numbers.items()}
        self._is_settled = len(self._numbers) == len(numbers) and now - self._changed_at > _SETTLED_SECONDS

    def _entries(self) -> Iterator[_Entry]:
        for entry in islice(os.scandir(self._directory), _MOST):
            with suppress(OSError):  # it goes at this moment
                yield _Entry(entry.name, entry.stat().st_ino)

    def _number(self, entry: _Entry) -> int | None:
        descriptor = self._open(entry)
        if descriptor is None:
            return None
        try:
            return self._look(descriptor)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def _open(self, entry: _Entry) -> int | None:
        """Open a namespace; None if that is none, yet, or another one than was seen."""
        path = os.path.join(self._directory, entry.name)  # noqa: PTH118  # at every visit
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            return None
        if kernel.is_netns(descriptor) and os.fstat(descriptor).st_ino == entry.inode:
            return descriptor
        os.close(descriptor)
        return None
