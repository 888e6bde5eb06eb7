"""Reading the slot array again and again says what reading it for the first time would."""

import mmap
import os
import random
import struct
from collections.abc import Iterator
from ctypes import sizeof
from ipaddress import ip_address

import pytest

from nodeagent.bpf import layout
from nodeagent.bpf.slots import SlotReader, encode_key
from nodeagent.model.flow import Counters, FlowClass, FlowKey, Slot, SlotState

SIZE = sizeof(layout.SlotLayout)
EDGES = (0, 1, 7, 8, 255, 256, 4095, 4096, layout.SLOTS - 1)
"""Positions at the borders of what is compared at once."""


class Array:
    """The kernel's array, in a file of memory."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("slots")
        os.ftruncate(self.descriptor, layout.SLOTS * SIZE)
        self._memory = mmap.mmap(self.descriptor, layout.SLOTS * SIZE)

    def write(self, slot: Slot) -> None:
        """Let *slot* be what stands at its position."""
        head = struct.pack("=II", slot.generation, slot.state)
        data = head + encode_key(slot.key) + struct.pack("=7Q", *slot.counters)
        self._memory[slot.position * SIZE : slot.position * SIZE + SIZE] = data

    def close(self) -> None:
        """Give everything back."""
        self._memory.close()
        os.close(self.descriptor)


@pytest.fixture
def array() -> Iterator[Array]:
    """Make an empty array."""
    made = Array()
    yield made
    made.close()


def slot(
    position: int, generation: int = 1, state: SlotState = SlotState.LIVE, count: int = 1, port: int = 443
) -> Slot:
    """Return a slot whose key depends on generation and port."""
    destination = ip_address("2001:db8::1") if generation % 2 else ip_address(f"198.18.0.{generation % 200}")
    key = FlowKey(position + 1, 7, destination, port, 6, 2, 2, FlowClass.BYPASSED)
    return Slot(position, generation, state, key, Counters(*range(count, count + 7)))


def afresh(array: Array) -> list[Slot]:
    """Return what a reader says that remembers nothing."""
    with SlotReader(array.descriptor) as reader:
        return reader.read()


def test_nothing_stands_in_an_empty_array(array: Array) -> None:
    assert afresh(array) == []


@pytest.mark.parametrize("position", EDGES)
def test_a_slot_lives_and_ends_and_its_place_is_anothers(array: Array, position: int) -> None:
    life = [
        slot(position),
        slot(position, count=5),
        slot(position, state=SlotState.EVICTED, count=6),
        slot(position, generation=2, port=80),
        slot(position, generation=2, port=80, count=9),
    ]
    with SlotReader(array.descriptor) as reader:
        for stands in life:
            array.write(stands)
            assert reader.read() == [stands]
            assert reader.read() == [stands]
            array.write(stands._replace(state=SlotState.FREE))
            assert reader.read() == []
            array.write(stands)
            assert reader.read() == [stands]


def test_a_free_slot_that_gets_a_key_without_a_new_generation_has_that_key(array: Array) -> None:
    """Reserved ones do."""
    array.write(slot(4)._replace(state=SlotState.FREE))
    with SlotReader(array.descriptor) as reader:
        assert reader.read() == []
        for port in (1, 2):
            array.write(slot(4, port=port))
            assert reader.read() == [slot(4, port=port)]
            array.write(slot(4, port=port)._replace(state=SlotState.FREE))
            assert reader.read() == []


def test_what_was_returned_stays_what_it_was(array: Array) -> None:
    array.write(slot(5000))
    with SlotReader(array.descriptor) as reader:
        before = reader.read()
        array.write(slot(5000, count=2))
        assert reader.read() == [slot(5000, count=2)]
        before.clear()  # whoever got it may do what he likes
        assert reader.read() == [slot(5000, count=2)]


@pytest.mark.parametrize("share", [1, 0.3, 0.01], ids=["all change", "many change", "few change"])
def test_many_changes_at_once_are_all_seen(array: Array, share: float) -> None:
    dice = random.Random(7)
    positions = [*EDGES, *range(4096, 9000)]
    now = {position: slot(position) for position in positions}
    for stands in now.values():
        array.write(stands)
    with SlotReader(array.descriptor) as reader:
        for turn in range(5):
            for position in positions:
                if dice.random() < share:
                    state = dice.choice(tuple(SlotState))
                    generation = now[position].generation + dice.choice((0, 0, 1))
                    now[position] = slot(position, generation, state, count=turn)
                    array.write(now[position])
            found = reader.read()
            assert found == [now[position] for position in sorted(now) if now[position].state]
            assert found == afresh(array)
