"""Slots found again after a restart: in place, moved by a changed layout, or gone."""

from ipaddress import ip_address

from nodeagent.ledger.memory import KnownSlot, describe_key
from nodeagent.ledger.recall import Recall
from nodeagent.model import Counters, FlowClass, FlowKey, Slot, SlotState

KEY = FlowKey(7, 71, ip_address("192.0.2.1"), 443, 6, 2, 2, FlowClass.BYPASSED)


def known(position: int, generation: int, *, evicted: bool = False) -> KnownSlot:
    return KnownSlot(position, generation, describe_key(KEY), evicted, 7, 71, None, Counters())


def slot(position: int, generation: int, state: SlotState = SlotState.LIVE) -> Slot:
    return Slot(position, generation, state, KEY, Counters())


def recall(kept: list[KnownSlot], found: list[Slot]) -> tuple[dict[int, int | None], list[int]]:
    """Return, by position, where each slot was known, and where slots were that are gone."""
    memory = Recall(kept)
    present = memory.sort({slot.position: slot for slot in found})
    taken = {position: memory.take(slot) for position, slot in present.items()}
    return {position: slot and slot.position for position, slot in taken.items()}, [s.position for s in memory.settle()]


def test_a_slot_in_its_place_is_found() -> None:
    assert recall([known(1, 5)], [slot(1, 5)]) == ({1: 1}, [])


def test_a_slot_that_changed_hands_is_another_one() -> None:
    assert recall([known(1, 5, evicted=True)], [slot(1, 6)]) == ({1: None}, [1])


def test_a_slot_that_was_moved_is_found_by_its_key() -> None:
    assert recall([known(1, 5)], [slot(8, 1)]) == ({8: 1}, [])


def test_of_two_slots_of_one_key_the_evicted_one_is_the_older() -> None:
    both = [slot(8, 1), slot(9, 1, SlotState.EVICTED)]
    assert recall([known(1, 5)], both) == ({8: None, 9: 1}, [])
    assert recall([known(1, 5, evicted=True), known(2, 3)], both) == ({8: 2, 9: 1}, [])


def test_what_is_gone_is_told_once() -> None:
    memory = Recall([known(1, 5)])
    memory.sort({})
    assert [slot.position for slot in memory.settle()] == [1]
    assert not memory.settle()
