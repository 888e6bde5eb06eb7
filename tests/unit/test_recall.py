"""Slots found again after a restart: in place, moved by a changed layout, or gone."""

from ipaddress import ip_address

from nodeagent.ledger.memory import KnownSlot, describe_key
from nodeagent.ledger.recall import Recall
from nodeagent.model import Counters, FlowClass, FlowKey, Slot, SlotState

KEY = FlowKey(7, 71, ip_address("192.0.2.1"), 443, 6, 2, 2, FlowClass.BYPASSED)


def known(position: int, generation: int, *, evicted: bool = False, base: int = 0) -> KnownSlot:
    return KnownSlot(position, generation, describe_key(KEY), evicted, 7, 71, None, Counters(base))


def slot(position: int, generation: int, state: SlotState = SlotState.LIVE, *, counted: int = 0) -> Slot:
    return Slot(position, generation, state, KEY, Counters(counted))


def recall(kept: list[KnownSlot], found: list[Slot]) -> tuple[dict[int, int | None], list[int]]:
    """Return, by position, where each slot was known, and where slots were that are gone."""
    memory = Recall(kept)
    memory.sort({slot.position: slot for slot in found})
    taken = {slot.position: memory.take(slot) for slot in found}
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


def test_evicted_slots_of_one_key_are_told_apart_by_what_they_counted() -> None:
    kept = [known(1, 5, evicted=True, base=30), known(2, 5, evicted=True, base=7), known(3, 5)]
    gone = SlotState.EVICTED
    both = [slot(6, 1, gone, counted=7), slot(7, 1, gone, counted=30)]
    assert recall(kept, [*both, slot(8, 1, counted=9)]) == ({6: 2, 7: 1, 8: 3}, [])
    assert recall(kept, [slot(5, 1, gone, counted=9), *both]) == ({5: 3, 6: 2, 7: 1}, [])
    assert recall(kept, [*both, slot(8, 1, gone, counted=9), slot(9, 1)]) == ({6: 2, 7: 1, 8: 3, 9: None}, [])
    assert recall(kept, [slot(6, 1, gone, counted=9), slot(7, 1)]) == ({6: 3, 7: None}, [1, 2])


def test_what_is_gone_is_told_once() -> None:
    memory = Recall([known(1, 5)])
    memory.sort({})
    assert [slot.position for slot in memory.settle()] == [1]
    assert not memory.settle()
