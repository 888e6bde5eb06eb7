"""What the ledger must find again after a restart, so that no series jumps, falls or is counted twice.

Slots survive the agent, and levels are sums over slots; so little has to be kept: where each
slot was booked, what was booked elsewhere when that changed, and what exported series start from.
:meth:`Ledger.observe` returns what changed; it has to be kept before anybody sees the numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from nodeagent.model import Counters, FlowKey, PodRecord, Reason, Verdict


class Account(NamedTuple):
    """What a pod's totals are kept by; ``protocol`` is a name."""

    verdict: Verdict
    reason: Reason
    protocol: str


class Line(NamedTuple):
    """What a pod's series are told apart by."""

    account: Account
    destination: str


class KnownSlot(NamedTuple):
    """Where the slot at ``position`` is booked, as long as it has this generation and key.

    ``line`` is None for loopback, which is in no book, and for what was taken over into a correction.
    Of its counters, ``base`` was booked elsewhere, before its line changed.  ``evicted`` says whether
    it was when this was kept: a key can have a slot that was evicted and a new one.
    """

    position: int
    generation: int
    key: str
    evicted: bool
    pod: int
    container: int
    line: Line | None
    base: Counters


class Correction(NamedTuple):
    """What belongs to an account besides its slots; fields may be negative."""

    pod: int
    container: int
    account: Account
    counters: Counters


class KnownSeries(NamedTuple):
    """An exported series: ``offset``, plus the slots on its line while it is ``active``."""

    pod: int
    line: Line
    active: bool
    offset: Counters


@dataclass(frozen=True)
class Changes:
    """What one observation changed.  Keep all of it, in one transaction, or none.

    ``free`` are positions to forget first, before ``slots`` are kept; ``ended`` maps pods to when they ended, or
    None for one that came back; ``forgotten`` pods lose their corrections and series;
    ``vacated`` ones have ended and hold no slot: their number may be given to another pod.
    ``dropped_bytes`` is as in :class:`Memory`.
    """

    slots: tuple[KnownSlot, ...] = ()
    free: tuple[int, ...] = ()
    corrections: tuple[Correction, ...] = ()
    series: tuple[KnownSeries, ...] = ()
    ended: Mapping[int, float | None] = field(default_factory=dict)
    forgotten: frozenset[int] = frozenset()
    vacated: frozenset[int] = frozenset()
    dropped_bytes: int | None = None

    def __bool__(self) -> bool:
        return self != _NOTHING


_NOTHING = Changes()


@dataclass(frozen=True)
class Memory:
    """All that was kept.

    ``records`` are those of all pods that were not forgotten, ended ones included; ``forgotten``
    pods may still hold slots; ``dropped_bytes`` is what left them without a destination of its own.
    """

    slots: tuple[KnownSlot, ...] = ()
    corrections: tuple[Correction, ...] = ()
    series: tuple[KnownSeries, ...] = ()
    records: Mapping[int, PodRecord] = field(default_factory=dict)
    ended: Mapping[int, float] = field(default_factory=dict)
    forgotten: frozenset[int] = frozenset()
    dropped_bytes: int = 0

    @property
    def orphans(self) -> set[int]:
        """Pods of which something is left, but no record."""
        left = {kept.pod for kept in self.corrections} | {kept.pod for kept in self.series}
        return left - self.records.keys()


def describe_key(key: FlowKey) -> str:
    """Return a text that no other key has."""
    numbers = (key.container, key.port, key.protocol, key.ifindex, key.epoch)
    kinds = (key.flow_class, key.owner, key.flags, key.kind)
    return f"{key.pod:x} {key.destination} {' '.join(map(str, map(int, numbers + kinds)))}"
