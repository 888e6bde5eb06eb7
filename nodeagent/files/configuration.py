"""The cluster configuration from a file, once or for as long as it may be edited."""

import time
from collections.abc import Callable
from pathlib import Path

from nodeagent.files.inotify import CONTENT, ENTRIES, ITSELF, Event, Watcher
from nodeagent.files.text import read_text
from nodeagent.policy.configuration import LARGEST, Configuration, read_configuration

_LONGEST_WRITE = 5.0


def load_configuration(path: str | None) -> Configuration:
    """Return the configuration of the file at *path*; without one, every default holds.

    Raises:
        InputError: the file cannot be read, or says something that is not understood.
    """
    if path is None:
        return Configuration()
    name, text = read_text(path, LARGEST)
    return read_configuration(text, name)


class ConfigurationFile:
    """A configuration file that is edited while it is in use.

    Its folder is watched, because editors and the kubelet replace files instead of writing to them.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = Path(path), clock
        self._watcher = Watcher()
        self._watch: int | None = None
        self._seen: tuple[int, ...] | None = None
        self._writing: float | None = None

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`changed` may say something new."""
        return self._watcher.fileno()

    def close(self) -> None:
        """Stop watching."""
        self._watcher.close()

    def changed(self) -> bool:
        """Say whether the file is another one than when this was asked last; not while somebody writes it."""
        if self._watch is None:
            self._watch = self._watcher.watch(str(self._path.parent), ENTRIES | CONTENT | ITSELF)
        for heard in self._watcher.heard():
            if heard.event & (ITSELF | Event.IGNORED):
                self._watch = None
            if heard.name == self._path.name:
                self._writing = self._clock() if heard.event & Event.MODIFY else None
        if self._writing is not None and self._clock() - self._writing < _LONGEST_WRITE:
            return False
        try:
            found = self._path.stat()
            seen: tuple[int, ...] = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        except OSError:
            seen = ()
        is_new, self._seen = seen != self._seen, seen
        return is_new

    @property
    def is_unfinished(self) -> bool:
        """Whether to ask again soon: somebody is writing, or the folder is not there."""
        return self._writing is not None or self._watch is None

    def read(self) -> Configuration:
        """Return what it says.

        Raises:
            InputError: as :func:`load_configuration`.
        """
        return load_configuration(str(self._path))
