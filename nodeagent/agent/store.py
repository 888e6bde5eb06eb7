"""What the agent must remember over a restart, as it asks for it; in memory where nothing better is there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nodeagent.errors import KernelError
from nodeagent.ledger import Changes, Memory
from nodeagent.model import PodName, Policy

MOST_PODS = 1023


@dataclass(frozen=True)
class Remembered:
    """A pod as it was: ``epoch`` is what the kernel was told last, or was about to be told."""

    name: PodName
    netns: str
    id: int
    number: int
    epoch: int = 0
    epochs: Mapping[int, Policy] = field(default_factory=dict)


class Store(Protocol):
    """Each change is written before it takes effect in the kernel."""

    @property
    def problem(self) -> str | None:
        """Why nothing is remembered; None if everything is."""

    def pods(self) -> list[Remembered]:
        """Return every pod that was added and not removed."""

    def add(self, name: PodName, netns: str, pod: int) -> Remembered:
        """Return the pod with this name, netns and ID; a new one gets a number that no other has.

        Raises:
            KernelError: there are too many pods.
        """

    def set_epoch(self, pod: int, epoch: int, policies: Mapping[int, Policy]) -> None:
        """Remember the epoch that follows, and the policies of settled epochs that are new."""

    def remove(self, pod: int) -> None:
        """Take note that a pod is counted no longer; its number is given again once the ledger has vacated it."""

    def memory(self) -> Memory:
        """Return what the ledger had kept."""

    def keep(self, changes: Changes) -> None:
        """Keep what an observation changed."""


class MemoryStore:
    """A store that lasts as long as the process: epochs that a former agent began are unknown."""

    problem = "nothing is remembered over a restart"

    def __init__(self) -> None:
        self._pods: dict[int, Remembered] = {}

    def pods(self) -> list[Remembered]:
        """See :meth:`Store.pods`."""
        return list(self._pods.values())

    def add(self, name: PodName, netns: str, pod: int) -> Remembered:
        """See :meth:`Store.add`."""
        known = self._pods.get(pod)
        if known and known.name == name and known.netns == netns:
            return known
        taken = {other.number for other in self._pods.values()}
        number = next((n for n in range(1, MOST_PODS + 1) if n not in taken), None)
        if number is None:
            raise KernelError(f"{MOST_PODS} pods are counted already: {name.namespace}/{name.name} is not")
        self._pods[pod] = Remembered(name, netns, pod, number)
        return self._pods[pod]

    def set_epoch(self, pod: int, epoch: int, policies: Mapping[int, Policy]) -> None:
        """See :meth:`Store.set_epoch`."""
        known = self._pods[pod]
        epochs = {**known.epochs, **policies}
        self._pods[pod] = Remembered(known.name, known.netns, known.id, known.number, epoch, epochs)

    def remove(self, pod: int) -> None:
        """See :meth:`Store.remove`."""
        self._pods.pop(pod, None)

    def memory(self) -> Memory:
        """See :meth:`Store.memory`."""
        return Memory()

    def keep(self, changes: Changes) -> None:
        """See :meth:`Store.keep`."""
