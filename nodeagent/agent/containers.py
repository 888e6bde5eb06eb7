"""Containers that come and go: their pods get a look, so that the kernel knows a new sidecar at once.

Pods that come as well: a directory for them appears where the kubelet makes those, and one where the container
runtime keeps network namespaces.
"""

from collections.abc import Iterable

from nodeagent.agent.pod import Pod
from nodeagent.files.inotify import ENTRIES, ITSELF, Event, Watcher
from nodeagent.model import PodKey


class Containers:
    """Watches the cgroup directories of pods."""

    def __init__(self) -> None:
        self._watcher = Watcher()
        self._keys: dict[int, PodKey] = {}
        self._watches: dict[PodKey, tuple[str, int]] = {}
        self._places: dict[str, int] = {}

    def fileno(self) -> int:
        """Return a descriptor that is readable when a container has come or gone."""
        return self._watcher.fileno()

    def close(self) -> None:
        """Watch no more."""
        self._watcher.close()

    def watch_places(self, places: Iterable[str]) -> None:
        """Watch the directories that pods begin in, as far as they are there: what comes there only wakes."""
        for place in places:
            if place not in self._places:
                number = self._watcher.watch(place, ENTRIES | ITSELF)
                if number is not None:
                    self._places[place] = number

    def follow(self, pods: Iterable[Pod]) -> set[PodKey]:
        """Watch these pods' cgroups, and no others; return those that were not watched before.

        Something may have happened in them before the watch began.
        """
        added: set[PodKey] = set()
        wanted = {pod.key: str(pod.counted.cgroup.path) for pod in pods if pod.counted.cgroup}
        for key, (path, watch) in list(self._watches.items()):
            if wanted.get(key) != path:
                del self._watches[key]
                self._keys.pop(watch, None)
                self._watcher.forget(watch)
        for key, path in wanted.items():
            if key not in self._watches:
                number = self._watcher.watch(path, ENTRIES | ITSELF)
                if number is not None:
                    self._watches[key], self._keys[number] = (path, number), key
                    added.add(key)
        return added

    def changed(self) -> set[PodKey]:
        """Return the pods whose containers changed, or whose cgroup went; all of them if events were lost."""
        found: set[PodKey] = set()
        for heard in self._watcher.heard():
            if heard.event & Event.OVERFLOW:
                found |= self._watches.keys()
            elif heard.event & Event.IGNORED:
                self._places = {place: watch for place, watch in self._places.items() if watch != heard.watch}
            elif key := self._keys.get(heard.watch):
                found.add(key)
        return found
