"""What the API server said of this node's pods so far, whatever order it was said in.

Promises: a pod goes only when it was said to have gone, or when a *complete* list leaves it out; what
is older than what we know changes nothing; a pod that cannot be read keeps its last good description.
Refuses to say anything before the first complete list.
"""

from dataclasses import dataclass, field

from nodeagent.errors import printable
from nodeagent.kube.wire import Heard, Kind
from nodeagent.model import PodKey, PodManifest, Snapshot

_MOST_GRAVES = 4096


@dataclass(slots=True)
class Draft:
    """A list that is not complete yet: what was said last of each pod that is there."""

    heard: dict[PodKey, Heard] = field(default_factory=dict)

    def take(self, heard: Heard) -> None:
        """Take in one pod of the list, or what happened to it while the list was being made."""
        if heard.key is None:
            return
        known = self.heard.get(heard.key)
        if known is None or not is_older(heard.version, known.version):
            self.heard[heard.key] = heard


class PodStore:
    """All pods of the node; ``changes`` counts how often it became another."""

    def __init__(self) -> None:
        self._pods: dict[PodKey, PodManifest] = {}
        self._versions: dict[PodKey, str] = {}
        self._problems: dict[PodKey, str] = {}
        self._gone: dict[PodKey, str] = {}
        self._is_complete = False
        self.changes = 0

    @property
    def snapshot(self) -> Snapshot | None:
        """What is known now; None before the first complete list."""
        if not self._is_complete:
            return None
        return Snapshot(dict(self._pods), {str(key): problem for key, problem in self._problems.items()})

    def replace(self, draft: Draft) -> int:
        """Take over a complete list, as it is; return the number of differences."""
        before, first = self.changes, not self._is_complete
        there = {key for key, heard in draft.heard.items() if heard.kind is not Kind.DELETED}
        for key in list(self._versions.keys() - there):
            self._forget(key)
        self._gone.clear()
        for key in there:
            self._describe(key, draft.heard[key])
        differences = self.changes - before
        self.changes += first
        self._is_complete = True
        return differences

    def take(self, heard: Heard) -> None:
        """Take in one event."""
        key = heard.key
        if key is None or any(is_older(heard.version, known.get(key)) for known in (self._versions, self._gone)):
            return
        if heard.kind is Kind.DELETED:
            self._forget(key)
            self._gone[key] = heard.version
            while len(self._gone) > _MOST_GRAVES:
                self._gone.pop(next(iter(self._gone)))
        else:
            self._describe(key, heard)

    def _describe(self, key: PodKey, heard: Heard) -> None:
        self._versions[key] = heard.version
        problem, before = printable(heard.problem, 512), self._problems.pop(key, "")
        if problem:
            self._problems[key] = problem
        is_new = heard.pod is not None and heard.pod != self._pods.get(key)
        if heard.pod is not None and is_new:  # else the same object stays: nobody has to compare it again
            self._pods[key] = heard.pod
        self.changes += is_new or problem != before

    def _forget(self, key: PodKey) -> None:
        known = self._versions.pop(key, None)
        self._problems.pop(key, None)
        self._pods.pop(key, None)
        self.changes += known is not None


def is_older(version: str, than: str | None) -> bool:
    """Say whether *version* is certain to be the older one.

    Versions are numbers that only grow, for all objects of one kind (KEP-5504); where a server spells
    them otherwise, what it says last holds.

    >>> is_older("9", "10"), is_older("10", "10"), is_older("abc", "10")
    (True, False, False)
    """
    return bool(than) and version.isdigit() and str(than).isdigit() and int(version) < int(str(than))
