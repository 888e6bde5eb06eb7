"""inotify: directories that say when something in them changes.

Only a hint, never the truth: events are lost when the queue overflows, and what they tell of may
be undone by now.  Whoever hears one looks for himself.  Nothing here blocks.
"""

import errno
import os
from collections.abc import Iterator
from enum import IntFlag
from typing import NamedTuple

from inotify_simple import INotify

from nodeagent.errors import KernelError


class Event(IntFlag):
    """What happened; ``linux/inotify.h``."""

    MODIFY = 0x2
    CLOSE_WRITE = 0x8
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    UNMOUNT = 0x2000
    OVERFLOW = 0x4000
    IGNORED = 0x8000


ENTRIES = Event.CREATE | Event.DELETE | Event.MOVED_FROM | Event.MOVED_TO
"""What changes the list of a directory's entries."""
ITSELF = Event.DELETE_SELF | Event.MOVE_SELF
"""What happens to the watched directory."""
CONTENT = Event.MODIFY | Event.CLOSE_WRITE
"""What happens inside files."""
_ONLY_DIRECTORIES = 0x01000000


class Heard(NamedTuple):
    """One event: of which watch, what, and the name of the entry (empty: the directory itself)."""

    watch: int
    event: Event
    name: str


class Watcher:
    """One inotify descriptor.

    Raises:
        KernelError: this user has too many of them.
    """

    def __init__(self) -> None:
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            raise KernelError(f"no inotify: {error.strerror}; raise fs.inotify.max_user_instances") from None

    def fileno(self) -> int:
        """Return the descriptor, readable when something happened."""
        return int(self._inotify.fileno())

    def watch(self, directory: str, events: Event) -> int | None:
        """Watch *directory*; return the watch's number, None where there is no such directory.

        Raises:
            KernelError: there are too many watches.
        """
        try:
            return int(self._inotify.add_watch(directory, int(events) | _ONLY_DIRECTORIES))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                return None
            raise KernelError(
                f"cannot watch {directory}: {os.strerror(error.errno or 0)}; raise fs.inotify.max_user_watches"
            ) from None

    def forget(self, watch: int) -> None:
        """Stop a watch; harmless if it ended with its directory."""
        try:
            self._inotify.rm_watch(watch)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def heard(self) -> Iterator[Heard]:
        """Return what happened since the last time."""
        for found in self._inotify.read(timeout=0):
            yield Heard(found.wd, Event(found.mask & 0xFFFF), found.name)

    def close(self) -> None:
        """Stop all watches."""
        self._inotify.close()
