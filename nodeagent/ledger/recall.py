"""Finds slots again that the agent before a restart knew, wherever they are now.

They stay where they are while the agent is down, but for an upgrade with a changed layout: it
moves them, keys, states and counters kept.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

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

    def settle(self) -> list[KnownSlot]:
        """Return what is nowhere, or nobody asked for where it moved to."""
        gone = [*self._gone, *self._moved.values()]
        self._gone.clear()
        self._moved.clear()
        return gone


def _is_same(known: KnownSlot, slot: Slot) -> bool:
    return known.generation == slot.generation and known.key == describe_key(slot.key)


def _pair(known: list[KnownSlot], found: list[Slot]) -> Iterator[tuple[KnownSlot, Slot]]:
    """Say which slot is which, of those that moved and have one key.

    At most one is live, and it goes nowhere before somebody saw it evicted.  Evicted ones stand still, near
    their base: that tells them apart.
    """
    evicted = [kept for kept in known if kept.evicted]
    left = sorted(found, key=lambda slot: slot.position)
    for live in (kept for kept in known if not kept.evicted):
        if left:
            slot = max(left, key=lambda s: (s.state is SlotState.LIVE, min((_apart(k, s) for k in evicted), default=0)))
            left.remove(slot)
            yield live, slot
    near = sorted((_apart(kept, slot), kept.position, slot.position) for kept in evicted for slot in left)
    by_position = {kept.position: kept for kept in evicted}, {slot.position: slot for slot in left}
    for _, was_at, is_at in near:
        if was_at in by_position[0] and is_at in by_position[1]:
            yield by_position[0].pop(was_at), by_position[1].pop(is_at)


def _apart(known: KnownSlot, slot: Slot) -> int:
    return sum(map(abs, minus(slot.counters, known.base)))
