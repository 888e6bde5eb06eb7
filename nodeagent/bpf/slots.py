"""Read what was counted: the slot array, mapped into memory; no system call a reading, no privilege.

The array is frozen: whoever has its descriptor can read it, and nothing else.
"""

import mmap
import struct
from ctypes import sizeof
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
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
_BLOCK: Final = 8  # slots that are compared with the reading before at once
_KEY_AT: Final = layout.SlotLayout.key.offset
_KEY: Final = struct.Struct("=QQ16sIIHBBBBBB")
_COUNTERS_AT: Final = layout.SlotLayout.counters.offset
_ROW: Final = struct.Struct(f"=II{_KEY.size}x7Q")  # generation, state, counters
# By number: an enumeration's own look-up takes ten times as long.
_STATES, _CLASSES, _KINDS = tuple(SlotState), tuple(FlowClass), tuple(FlowKind)
_OWNERS: Final = tuple(FlowOwner(bits) for bits in range(8))
_FLAGS: Final = tuple(FlowFlags(bits) for bits in range(4))
_V4: Final = 4


class SlotReader:
    """Reads the slot array behind a descriptor, which it does not keep.

    Promises: what one slot shows was true of it at some moment since the call began, counter by
    counter; a live slot has its whole key.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, layout.SLOTS * _SLOT, mmap.MAP_SHARED, mmap.PROT_READ)
        self._before = b""
        self._blocks: list[list[Slot]] = [[] for _ in range(layout.SLOTS // _BLOCK)]
        self._keys: dict[int, tuple[int, FlowKey]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the array."""
        self._memory.close()

    def read(self) -> list[Slot]:
        """Return the slots that are not free, by position."""
        now, before, size = self._memory[:], self._before, _BLOCK * _SLOT
        for number, at in enumerate(range(0, len(now), size)):
            block = now[at : at + size]
            if block != before[at : at + size]:
                self._blocks[number] = self._parse(block, number * _BLOCK)
        self._before = now
        return list(chain.from_iterable(self._blocks))

    def _parse(self, data: bytes, first: int) -> list[Slot]:
        # tuple.__new__: a named tuple's own constructor takes four times as long
        slots, keys, new = [], self._keys, tuple.__new__
        for position, row in enumerate(_ROW.iter_unpack(data), first):
            generation, state = row[0], row[1]
            if not state:
                continue
            known = keys.get(position)
            if known is None or known[0] != generation:
                at = (position - first) * _SLOT
                known = keys[position] = generation, decode_key(data[at + _KEY_AT : at + _COUNTERS_AT])
            counters = new(Counters, row[2:])
            slots.append(new(Slot, (position, generation, _STATES[state], known[1], counters)))
        return slots


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
