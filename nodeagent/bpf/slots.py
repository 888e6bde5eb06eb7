"""Read what was counted: the slot array, mapped into memory; no system call a reading, no privilege.

The array is frozen: whoever has its descriptor can read it, and nothing else.
"""

import mmap
import os
import struct
from ctypes import sizeof
from ipaddress import IPv4Address, IPv6Address
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
_BLOCK: Final = 64  # slots that are compared with the reading before at once
_KEY_AT: Final = layout.SlotLayout.key.offset
_HEAD: Final = struct.Struct("=II")
_KEY: Final = struct.Struct("=QQ16sIIHBBBBBB")
_COUNTERS: Final = struct.Struct("=7Q")
_COUNTERS_AT: Final = layout.SlotLayout.counters.offset
_STATES: Final = {int(state): state for state in SlotState}
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
            if now[at : at + size] != before[at : at + size]:
                self._blocks[number] = self._parse(now, number * _BLOCK)
        self._before = now
        return [slot for block in self._blocks for slot in block]

    def _parse(self, data: bytes, first: int) -> list[Slot]:
        slots, keys = [], self._keys
        for position in range(first, first + _BLOCK):
            at = position * _SLOT
            generation, state = _HEAD.unpack_from(data, at)
            if not state:
                continue
            known = keys.get(position)
            if known is None or known[0] != generation:
                known = keys[position] = generation, decode_key(data[at + _KEY_AT : at + _COUNTERS_AT])
            counters = Counters._make(_COUNTERS.unpack_from(data, at + _COUNTERS_AT))
            slots.append(Slot(position, generation, _STATES[state], known[1], counters))
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
        flow_class=FlowClass(class_),
        owner=FlowOwner(owner),
        flags=FlowFlags(flags),
        kind=FlowKind(kind),
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


def copy_of(descriptor: int) -> int:
    """Return a descriptor of the same array that the caller may give away."""
    return os.dup(descriptor)
