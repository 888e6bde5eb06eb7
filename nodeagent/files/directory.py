"""A directory of Pod manifests, as a source of pods.

Promises: what :meth:`PodDirectory.scan` returns is what the directory says now, file by file; a file
that cannot be understood keeps the Pods that it last gave, and says so; one that somebody is writing
is not looked at until it is closed.  Files come and go by any means: renames, symbolic links that
are swapped (as the kubelet does with ConfigMaps), a directory that is replaced.

Refuses to guess: a directory that cannot be listed gives no snapshot, never an empty one.  Looks
only at names that end like a manifest's and do not begin with a dot, and only at ordinary files.
"""

import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from nodeagent.errors import InputError, printable
from nodeagent.files.inotify import CONTENT, ENTRIES, ITSELF, Event, Watcher
from nodeagent.files.manifest import load
from nodeagent.model import PodKey, PodManifest, Snapshot

SUFFIXES: Final = (".yaml", ".yml", ".json")
_STOPPED_WRITING: Final = Event.CLOSE_WRITE | Event.MOVED_TO | Event.MOVED_FROM | Event.DELETE
_LONGEST_WRITE: Final = 5.0
"""Seconds without a write after which a file that stays open for writing is read all the same."""


class _Signature(NamedTuple):
    """A file's identity and age: equal as long as nobody wrote to it."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


@dataclass(frozen=True, slots=True)
class _File:
    """What a file last gave; ``problem`` is why its last edit gave nothing."""

    signature: _Signature
    pods: tuple[PodManifest, ...] = ()
    problem: str = ""


class PodDirectory:
    """The directory at *path*; *clock* counts seconds and never goes back."""

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._files: dict[str, _File] = {}
        self._writing: dict[str, float] = {}
        self._watcher = Watcher()
        self._watch: int | None = None

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`heard` has something to hear."""
        return self._watcher.fileno()

    def close(self) -> None:
        """Stop watching."""
        self._watcher.close()

    def heard(self) -> bool:
        """Take note of what happened; say whether a scan may find something new."""
        news = False
        for heard in self._watcher.heard():
            if heard.watch != self._watch:
                continue  # of a directory that was here before
            if heard.event & (ITSELF | Event.IGNORED | Event.UNMOUNT):
                self._watch = None
            if heard.event & Event.MODIFY:
                self._writing[heard.name] = self._clock()
            elif heard.event & _STOPPED_WRITING:
                self._writing.pop(heard.name, None)
            news |= heard.event != Event.MODIFY
        return news

    def scan(self) -> Snapshot:
        """Return what the directory says now; reads only what changed since the last time.

        Raises:
            InputError: the directory cannot be listed: nothing is known of its pods.
        """
        if self._watch is None:
            self._watch = self._watcher.watch(self._path, ENTRIES | CONTENT | ITSELF)
        found = self._list()
        for name in self._files.keys() - found.keys():
            del self._files[name]
        now = self._clock()
        self._writing = {name: since for name, since in self._writing.items() if now - since < _LONGEST_WRITE}
        for name, signature in found.items():
            known = self._files.get(name)
            if name not in self._writing and (known is None or known.signature != signature):
                self._files[name] = self._read(name, signature, known)
        return self._snapshot()

    @property
    def is_unfinished(self) -> bool:
        """Whether somebody is writing a file, or the directory is not there: look again soon."""
        return bool(self._writing) or self._watch is None

    def _list(self) -> dict[str, _Signature]:
        try:
            paths = sorted(Path(self._path).iterdir())
        except OSError as error:
            self._watch = None
            raise InputError(f"{printable(self._path)}: cannot be listed: {error.strerror}") from None
        found = {}
        for path in paths:
            if path.name.endswith(SUFFIXES) and not path.name.startswith("."):
                try:
                    status = path.stat()
                except OSError:
                    continue  # gone meanwhile, or a link to nowhere
                if stat.S_ISREG(status.st_mode):
                    found[path.name] = _Signature(
                        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
                    )
        return found

    def _read(self, name: str, signature: _Signature, known: _File | None) -> _File:
        if not signature.size and known is None:
            return _File(signature)  # just created: what is to be in it follows
        try:
            return _File(signature, load(str(Path(self._path, name))))
        except InputError as error:
            return _File(signature, known.pods if known else (), str(error))

    def _snapshot(self) -> Snapshot:
        pods: dict[PodKey, PodManifest] = {}
        names: dict[tuple[str, str], str] = {}
        problems = {name: file.problem for name, file in self._files.items() if file.problem}
        for name, file in sorted(self._files.items()):
            for pod in file.pods:
                first = names.setdefault((pod.namespace, pod.name), name)
                if PodKey.of(pod) not in pods and first == name:
                    pods[PodKey.of(pod)] = pod
                else:
                    problems[name] = f"{printable(name)}: {pod.namespace}/{pod.name} is in {printable(first)} already"
        return Snapshot(pods, problems)
