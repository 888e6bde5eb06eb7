"""Finds slots again that the agent before a restart knew, wherever they are now.

They stay where they are while the agent is down, but for an upgrade with a changed layout: it
moves them, keys and counters kept.
"""

from collections.abc import Iterable, Mapping

from nodeagent.ledger.memory import KnownSlot, describe_key
from nodeagent.model import Slot, SlotState


class Recall:
    """What was known of slots; each is handed out once."""

    def __init__(self, known: Iterable[KnownSlot]) -> None:
        self._in_place = {slot.position: slot for slot in known}
        self._moved: dict[tuple[str, bool], KnownSlot] = {}

    def known(self) -> tuple[KnownSlot, ...]:
        """Return what was not handed out yet."""
        return tuple(self._in_place.values())

    def sort(self, present: Mapping[int, Slot]) -> dict[int, Slot]:
        """Tell what stayed from what moved or went, and return *present* in the order in which to ask for it.

        Evicted ones first: what is known of a key is of its older slot.
        """
        for position, known in list(self._in_place.items()):
            slot = present.get(position)
            if slot is None or not _is_same(known, slot):
                del self._in_place[position]
                self._moved[known.key, known.evicted] = known
        return dict(sorted(present.items(), key=lambda item: item[1].state is not SlotState.EVICTED))

    def take(self, slot: Slot) -> KnownSlot | None:
        """Return what was known of *slot*."""
        known = self._in_place.get(slot.position)
        if known and _is_same(known, slot):
            return self._in_place.pop(slot.position)
        if not self._moved:
            return None
        key = describe_key(slot.key)
        found = self._moved.pop((key, True), None) if slot.state is SlotState.EVICTED else None
        return found or self._moved.pop((key, False), None)

    def settle(self) -> list[KnownSlot]:
        """Return what nobody asked for and is nowhere."""
        gone = list(self._moved.values())
        self._moved.clear()
        return gone


def _is_same(known: KnownSlot, slot: Slot) -> bool:
    return known.generation == slot.generation and known.key == describe_key(slot.key)
