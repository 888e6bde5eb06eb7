"""Finds slots again that the agent before a restart knew, wherever they are now.

They stay where they are while the agent is down, but for an upgrade with a changed layout: it
moves them, keys, states and counters kept.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from nodeagent.ledger.counts import minus
from nodeagent.ledger.memory import KnownSlot, describe_key
from nodeagent.model import Slot, SlotState


class Recall:
    """What was known of slots; each is handed out once."""

    def __init__(self, known: Iterable[KnownSlot]) -> None:
        self._in_place = {slot.position: slot for slot in known}
        self._moved: dict[tuple[int, int], KnownSlot] = {}
        self._gone: list[KnownSlot] = []

    def known(self) -> tuple[KnownSlot, ...]:
        """Return what was not handed out yet."""
        return tuple(self._in_place.values())

    def sort(self, present: Mapping[int, Slot]) -> None:
        """Tell what stayed from what moved, and from what went."""
        known, found = defaultdict[str, list[KnownSlot]](list), defaultdict[str, list[Slot]](list)
        for position, kept in list(self._in_place.items()):
            slot = present.get(position)
            if slot is None or not _is_same(kept, slot):
                known[kept.key].append(self._in_place.pop(position))
        for slot in present.values() if known else ():
            if slot.position not in self._in_place:
                found[describe_key(slot.key)].append(slot)
        for key, kept_of_key in known.items():
            pairs = list(_pair(kept_of_key, found[key]))
            self._moved |= {(slot.position, slot.generation): kept for kept, slot in pairs}
            paired = [kept for kept, _ in pairs]
            self._gone += [kept for kept in kept_of_key if kept not in paired]

    def take(self, slot: Slot) -> KnownSlot | None:
        """Return what was known of *slot*."""
        known = self._in_place.get(slot.position)
        if known and _is_same(known, slot):
            return self._in_place.pop(slot.position)
        return self._moved.pop((slot.position, slot.generation), None)

    @property
    def has_lost(self) -> bool:
        """Whether slots are nowhere that nobody has seen evicted: the maps have gone, and others are in their place."""
        return any(not kept.evicted for kept in self._gone)

    def settle(self) -> list[KnownSlot]:
        """Return what is nowhere, or nobody asked for where it moved to."""
        gone = [*self._gone, *self._moved.values()]
        self._gone.clear()
        self._moved.clear()
        return gone


def _is_same(known: KnownSlot, slot: Slot) -> bool:
    return known.generation == slot.generation and known.key == describe_key(slot.key)


def _pair(known: Iterable[KnownSlot], found: Iterable[Slot]) -> Iterator[tuple[KnownSlot, Slot]]:
    """Say which slot is which, of those that moved and have one key: at most one of them is live, the newest.

    Evicted ones stand still: what one of them has counted is its base.  What was live goes nowhere before
    somebody has seen it evicted: so it is there, and if it was evicted meanwhile a live one is another.
    """
    evicted, left, pairs = [kept for kept in known if kept.evicted], list(found), list[tuple[KnownSlot, Slot]]()

    def match(kept: KnownSlot, slots: list[Slot]) -> None:
        if slots:
            slot = min(slots, key=partial(_apart, kept))
            left.remove(slot)
            pairs.append((kept, slot))

    for kept in evicted:
        match(kept, [slot for slot in left if slot.state is SlotState.EVICTED and slot.counters == kept.base])
    for live in (kept for kept in known if not kept.evicted):
        if not left and pairs:
            left.append(pairs.pop()[1])
        match(live, [slot for slot in left if slot.state is SlotState.EVICTED] or left)
    for kept in evicted:
        if all(kept is not paired for paired, _ in pairs):
            match(kept, [slot for slot in left if slot.state is SlotState.EVICTED])
    yield from pairs


def _apart(known: KnownSlot, slot: Slot) -> int:
    return sum(map(abs, minus(slot.counters, known.base)))
