"""Read what was counted: the slot array, mapped into memory; no system call a reading, no privilege.

The array is frozen: whoever has its descriptor can read it, and nothing else.
"""

import mmap
import struct
from collections.abc import Iterator
from ctypes import sizeof
from ipaddress import IPv4Address, IPv6Address
from itertools import compress, count, repeat
from socket import ntohs
from typing import Final, Self

from nodeagent.bpf import layout
from nodeagent.model.flow import (
    Counters,
    FlowClass,
    FlowFlags,
    FlowKey,
    FlowKind,
    FlowOwner,
    Slot,
    SlotState,
)

_SLOT: Final = sizeof(layout.SlotLayout)
_RUN, _BLOCK = 256, 8  # slots that are compared with the reading before at once, and then those of what differs
_KEY_AT: Final = layout.SlotLayout.key.offset
_KEY: Final = struct.Struct("=QQ16sIIHBBBBBB")
_COUNTERS_AT: Final = layout.SlotLayout.counters.offset
_GENERATION_AT, _STATE_AT = layout.SlotLayout.generation.offset, layout.SlotLayout.state.offset
_COUNTERS: Final = struct.Struct(f"={_COUNTERS_AT}x7Q")
# By number: an enumeration's own look-up takes ten times as long.
_STATES, _CLASSES, _KINDS = tuple(SlotState), tuple(FlowClass), tuple(FlowKind)
_OWNERS: Final = tuple(FlowOwner(bits) for bits in range(8))
_FLAGS: Final = tuple(FlowFlags(bits) for bits in range(4))
_V4: Final = 4
_NAMELESS: Final = -1  # a free slot's
_NO_KEY: Final = FlowKey(0, 0, IPv4Address(0), 0, 0, 0, 0, FlowClass.INTERCEPTED)
_NO_SLOT: Final = Slot(0, 0, SlotState.FREE, _NO_KEY, Counters())


class SlotReader:
    """Reads the slot array behind a descriptor, which it does not keep.

    Promises: what one slot shows was true of it at some moment since the call began, counter by
    counter; a live slot has its whole key.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, layout.SLOTS * _SLOT, mmap.MAP_SHARED, mmap.PROT_READ)
        self._before = bytes(layout.SLOTS * _SLOT)  # all of them free
        self._slots: list[Slot] = [_NO_SLOT] * layout.SLOTS
        self._keys: list[FlowKey] = [_NO_KEY] * layout.SLOTS
        self._named = [_NAMELESS] * layout.SLOTS  # the generation that the key is of
        self._states = [int(SlotState.FREE)] * layout.SLOTS
        self._found: list[Slot] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the array."""
        self._memory.close()

    def read(self) -> list[Slot]:
        """Return the slots that are not free, by position."""
        now, before = self._memory[:], self._before
        if now != before:
            for start, end in _changed(now, before):
                self._parse(now[start:end], start // _SLOT)
            self._before = now
            self._found = list(compress(self._slots, self._states))
        return self._found.copy()

    def _parse(self, data: bytes, first: int) -> None:
        """Take in the slots from position *first* on; a Python loop for each would take three times as long."""
        here, words, new = slice(first, first + len(data) // _SLOT), memoryview(data).cast("I"), tuple.__new__
        generations, states = (words[at // 4 :: _SLOT // 4].tolist() for at in (_GENERATION_AT, _STATE_AT))
        named = [generation if state else _NAMELESS for generation, state in zip(generations, states, strict=True)]
        if not any(states):  # free ones keep their last counters: nobody's
            self._named[here], self._states[here] = named, states
            return
        if named != self._named[here]:
            self._read_keys(data, first, named)
        counters = map(new, repeat(Counters), _COUNTERS.iter_unpack(data))
        rows = zip(
            count(first), generations, map(_STATES.__getitem__, states), self._keys[here], counters, strict=False
        )
        self._slots[here] = map(new, repeat(Slot), rows)  # a named tuple's own constructor takes four times as long
        self._states[here] = states

    def _read_keys(self, data: bytes, first: int, named: list[int]) -> None:
        for position, generation in enumerate(named, first):
            if generation not in (_NAMELESS, self._named[position]):
                at = (position - first) * _SLOT
                self._keys[position] = decode_key(data[at + _KEY_AT : at + _COUNTERS_AT])
        self._named[first : first + len(named)] = named


def _changed(now: bytes, before: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of what differs, in whole blocks; neighbours are one."""
    run, block = _RUN * _SLOT, _BLOCK * _SLOT
    for first in range(0, len(now), run):
        start = None
        if now[first : first + run] != before[first : first + run]:
            for at in range(first, first + run, block):
                if now[at : at + block] == before[at : at + block]:
                    if start is not None:
                        yield start, at
                    start = None
                elif start is None:
                    start = at
        if start is not None:
            yield start, first + run


def decode_key(data: bytes) -> FlowKey:
    """Return the key in a ``struct flow_key``."""
    pod, container, address, ifindex, epoch, port, protocol, family, class_, owner, flags, kind = _KEY.unpack(data)
    return FlowKey(
        pod=pod,
        container=container,
        destination=IPv4Address(address[:4]) if family == _V4 else IPv6Address(address),
        port=ntohs(port),
        protocol=protocol,
        ifindex=ifindex,
        epoch=epoch,
        flow_class=_CLASSES[class_],
        owner=_OWNERS[owner],
        flags=_FLAGS[flags],
        kind=_KINDS[kind],
    )


def encode_key(key: FlowKey) -> bytes:
    """Return *key* as a ``struct flow_key``.

    >>> from ipaddress import ip_address
    >>> key = FlowKey(7, 8, ip_address("2001:db8::1"), 443, 6, 2, 4, FlowClass.BYPASSED)
    >>> decode_key(encode_key(key)) == key
    True
    """
    return _KEY.pack(
        key.pod,
        key.container,
        key.destination.packed,
        key.ifindex,
        key.epoch,
        ntohs(key.port),
        key.protocol,
        key.destination.version,
        key.flow_class,
        key.owner,
        key.flags,
        key.kind,
    )
