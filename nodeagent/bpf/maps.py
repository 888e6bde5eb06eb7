"""The maps that the programs count in: how large they are, and how one set of them is made."""

import mmap
import os
import struct
from collections.abc import Mapping
from ctypes import sizeof
from dataclasses import dataclass
from typing import Final

from nodeagent.bpf import layout, syscalls
from nodeagent.bpf.layout import MapNumber

HASH, ARRAY, QUEUE, SK_STORAGE = 1, 2, 22, 24  # enum bpf_map_type
NO_PREALLOC, MMAPABLE = 1, 1 << 10
_SIDECARS, _OWNERS = 8 * layout.PODS, 16 * layout.PODS
_ERA_SHIFT: Final = 20  # a slot may change hands a million times
ERAS: Final = 1 << 32 - _ERA_SHIFT
_BTF_INT, _BTF_STRUCT = 1, 4  # include/uapi/linux/btf.h


@dataclass(frozen=True)
class MapSpec:
    """A map's type and sizes, as BPF_MAP_CREATE takes them."""

    kind: int
    key: int
    value: int
    entries: int
    flags: int = 0


SPECS: Final[Mapping[MapNumber, MapSpec]] = {
    MapNumber.CONFIG: MapSpec(ARRAY, 4, sizeof(layout.ConfigLayout), 1),
    MapNumber.PODS: MapSpec(HASH, 8, sizeof(layout.PodLayout), layout.PODS),
    MapNumber.SIDECARS: MapSpec(HASH, 8, 8, _SIDECARS, NO_PREALLOC),
    MapNumber.OWNERS: MapSpec(HASH, sizeof(layout.OwnerLayout), 1, _OWNERS, NO_PREALLOC),
    MapNumber.SOCKETS: MapSpec(SK_STORAGE, 4, sizeof(layout.SocketLayout), 0, NO_PREALLOC),
    MapNumber.SLOTS: MapSpec(ARRAY, 4, sizeof(layout.SlotLayout), layout.SLOTS, MMAPABLE),
    MapNumber.INDEX: MapSpec(HASH, sizeof(layout.KeyLayout), 4, layout.SLOTS),
    MapNumber.FREE: MapSpec(QUEUE, 0, 4, layout.SLOTS),
    MapNumber.TALLIES: MapSpec(ARRAY, 4, 8, layout.TALLIES),
    MapNumber.CARRIED: MapSpec(ARRAY, 4, 4, layout.SLOTS),
}


def create(number: MapNumber, era: int) -> int:
    """Return a descriptor of a new map, empty; slots are frozen.

    *era* is the number of the set of maps: what sockets remember about slots of another one must not fit here.
    """
    spec = SPECS[number]
    descriptor = syscalls.with_memory(lambda: _create(number, spec))
    try:
        if number is MapNumber.SLOTS:
            _begin_generations(descriptor, era)
            syscalls.freeze(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def era_of(generation: int) -> int:
    """Return the era of a set of maps, given the generation of one of its slots."""
    return generation >> _ERA_SHIFT


def _begin_generations(descriptor: int, era: int) -> None:
    size, first = sizeof(layout.SlotLayout), struct.pack("=I", era << _ERA_SHIFT & 0xFFFFFFFF)
    with mmap.mmap(descriptor, layout.SLOTS * size) as slots:
        for at in range(layout.SlotLayout.generation.offset, layout.SLOTS * size, size):
            slots[at : at + len(first)] = first


def _create(number: MapNumber, spec: MapSpec) -> int:
    name, sizes = f"na_{number.name.lower()}", (spec.key, spec.value, spec.entries)
    if spec.kind != SK_STORAGE:
        return syscalls.create_map(spec.kind, name, sizes, spec.flags, (0, 0, 0))
    btf = syscalls.load_btf(_storage_types(spec.value))
    try:
        return syscalls.create_map(spec.kind, name, sizes, spec.flags, (btf, 1, 2))
    finally:
        os.close(btf)


def _storage_types(size: int) -> bytes:
    """Return the type information without which there is no socket storage: an int, and a structure of *size*."""
    strings = b"\0int\0state\0"
    types = struct.pack("=IIII", 1, _BTF_INT << 24, 4, 1 << 24 | 32)  # signed, 32 bits
    types += struct.pack("=III", 5, _BTF_STRUCT << 24, size)  # without naming its members
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings
