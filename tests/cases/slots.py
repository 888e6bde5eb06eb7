"""A kernel that counts, for the ledger's tests: slots, generations, eviction and folding as bpf/flow.h has them."""

from collections.abc import Container
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import count

from nodeagent.ledger import Release
from nodeagent.model import Address, Counters, FlowClass, FlowKey, FlowKind, Slot, SlotState

ANY: Address = ip_address("0.0.0.0")
_ERA = 1 << 20
FIRST = 100
"""The first position that belongs to no pod; the others are the pods' overflow slots."""


def packets(number: int) -> Counters:
    """Return what so many packets of 100 bytes add to a slot."""
    return Counters(1, number, number, 100 * number, 60 * number, number, 40 * number)


@dataclass
class CountingKernel:
    """Counts into slots; ``capacity`` of them are shared, the rest goes to the pods' overflow slots."""

    capacity: int
    sent: dict[int, int] = field(default_factory=dict)
    """Packets by pod, without those of slots that were dropped for good: what the books have to come to."""
    ever_sent: dict[int, int] = field(default_factory=dict)
    """Packets by pod, ever."""
    _slots: dict[int, Slot] = field(default_factory=dict)
    _index: dict[FlowKey, int] = field(default_factory=dict)
    _generations: dict[int, int] = field(default_factory=dict)
    _era: int = 0

    def send(self, key: FlowKey, number: int) -> None:
        """Count *number* packets of one flow."""
        for sums in (self.sent, self.ever_sent):
            sums[key.pod] = sums.get(key.pod, 0) + number
        self._add(self._find(key), packets(number))

    def read(self) -> list[Slot]:
        """Return all slots, as the agent sees them."""
        return list(self._slots.values())

    @property
    def free(self) -> int:
        """Shared slots that nobody has."""
        return self.capacity - sum(position >= FIRST for position in self._slots)

    def evict(self, victims: list[tuple[int, int]]) -> None:
        """Let no packet find these slots any more."""
        for position, generation in victims:
            slot = self._slots.get(position)
            if slot and slot.generation == generation:
                self._slots[position] = slot._replace(state=SlotState.EVICTED)
                self._index = {key: at for key, at in self._index.items() if at != position}

    def forget(self, pod: int) -> None:
        """Count a pod no longer: all its slots are evicted."""
        self.evict([(p, slot.generation) for p, slot in self._slots.items() if slot.key.pod == pod])

    def close_books(self, pod: int) -> None:
        """Take note that a pod's books were closed: they would begin with what its slots hold."""
        self.sent[pod] = sum(slot.counters.packets for slot in self._slots.values() if slot.key.pod == pod)

    def release(self, releases: list[Release], books: Container[int] = ()) -> None:
        """Free evicted slots, their counts folded into the target's slot, or dropped: pods in *books* have them."""
        for position, generation, target in releases:
            slot = self._slots.get(position)
            if slot and slot.generation == generation:
                assert slot.state is SlotState.EVICTED
                del self._slots[position]
                if target:
                    self._add(self._find(target), slot.counters)
                elif slot.key.pod not in books:
                    self.sent[slot.key.pod] -= slot.counters.packets

    def lose_everything(self, books: Container[int]) -> None:
        """Begin anew, as where somebody removed all maps: pods in *books* were counted already."""
        for slot in self._slots.values():
            if slot.key.pod not in books:
                self.sent[slot.key.pod] -= slot.counters.packets
        self._begin_era()

    def _begin_era(self) -> None:
        """Begin new maps: no slot of theirs has a position and a generation that one of the old ones has."""
        self._era += _ERA
        self._slots, self._index, self._generations = {}, {}, {}

    def carry_over(self) -> None:
        """Move all slots to other positions and generations, as a changed layout does."""
        slots = list(self._slots.items())
        self._begin_era()
        shared = count(FIRST)
        for position, slot in reversed(slots):
            to = position if position < FIRST else next(shared)
            self._slots[to] = slot._replace(position=to, generation=self._generation(to))
            if slot.state is SlotState.LIVE:
                self._index[slot.key] = to

    def _generation(self, position: int) -> int:
        generation = self._generations[position] = self._generations.get(position, self._era) + 1
        return generation

    def _add(self, position: int, counters: Counters) -> None:
        slot = self._slots[position]
        total = Counters(*(a + b for a, b in zip(slot.counters, counters, strict=True)))
        self._slots[position] = slot._replace(counters=total)

    def _find(self, key: FlowKey) -> int:
        if key in self._index:
            return self._index[key]
        shared = range(FIRST, FIRST + self.capacity)
        position = next((p for p in shared if p not in self._slots), None)
        if position is None:
            position = key.pod * len(FlowClass) + key.flow_class
            key = overflow_key(key)
        if position not in self._slots:
            self._slots[position] = Slot(position, self._generation(position), SlotState.LIVE, key, Counters())
        self._index[key] = position
        return position


def overflow_key(key: FlowKey) -> FlowKey:
    """Return the key of the overflow slot of a flow's pod and class."""
    return FlowKey(key.pod, 0, ANY, 0, 0, 0, 0, key.flow_class, kind=FlowKind.OVERFLOW)


def in_epoch(key: FlowKey, epoch: int) -> FlowKey:
    """Return the same flow, begun in another epoch."""
    return replace(key, epoch=epoch)
