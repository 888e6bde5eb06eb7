"""One legacy table as bytes, and what its entries hold.  Pure.

Sources: ``linux/netfilter/x_tables.h``, ``linux/netfilter_ipv4/ip_tables.h``,
``linux/netfilter_ipv6/ip6_tables.h``, ``linux/netfilter/xt_bpf.h`` (all of ``include/uapi``).
Refuses, as :func:`unknown_layout`, entries whose sizes do not add up.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.model import Family

HOOKS: Final = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")  # enum nf_inet_hooks
ERROR_TARGET: Final = b"ERROR"  # XT_ERROR_TARGET: heads a user's chain, ends a table
COUNTER_SIZE: Final = 16  # struct xt_counters: packets, bytes

_EXTENSION: Final = struct.Struct("=H29sB")  # struct xt_entry_match, struct xt_entry_target
_OFFSETS: Final = struct.Struct("=HH")  # target_offset, next_offset
_UINT: Final = struct.Struct("=I")
_VERDICT: Final = struct.Struct("=i")
_NO_MARK: Final = bytes(_UINT.size)
_BPF_MODE: Final = struct.Struct("=H")  # struct xt_bpf_info_v1: mode, number, fd, path
_BPF_MODE_PATH_PINNED, _BPF_FD_AT = 1, 4


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one family's entry (``struct ipt_entry``, ``struct ip6t_entry``) keeps what."""

    prefix: str
    nfcache_at: int
    offsets_at: int
    comefrom_at: int
    counters_at: int
    size: int


LAYOUTS: Final = {
    Family.V4: Layout("ip", nfcache_at=84, offsets_at=88, comefrom_at=92, counters_at=96, size=112),
    Family.V6: Layout("ip6", nfcache_at=136, offsets_at=140, comefrom_at=144, counters_at=152, size=168),
}
"""The two families differ here, and in the socket that reaches them."""


@dataclass(frozen=True, slots=True)
class Extension:
    """A match or a target of one entry: its name, its revision, its own data."""

    name: bytes
    revision: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Table:
    """One whole table: where each hook enters, where its policy stands, and all entries.

    ``hook_entry`` and ``underflow`` are offsets into ``entries``, by number of the hook; they
    mean something where ``valid_hooks`` has the hook's bit.
    """

    family: Family
    name: str
    valid_hooks: int
    hook_entry: tuple[int, ...]
    underflow: tuple[int, ...]
    number: int
    entries: bytes = field(repr=False)

    @property
    def label(self) -> str:
        """What people call it: ``"ip nat"``."""
        return f"{LAYOUTS[self.family].prefix} {self.name}"

    def hooks(self) -> Iterator[int]:
        """Yield the numbers of the hooks that the table has."""
        return (hook for hook in range(len(HOOKS)) if self.valid_hooks >> hook & 1)


def split(table: Table) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of each entry; KernelError if the sizes do not add up."""
    at, end = 0, len(table.entries)
    layout = LAYOUTS[table.family]
    while at < end:
        if at + layout.size > end:
            raise unknown_layout(table)
        size = _OFFSETS.unpack_from(table.entries, at + layout.offsets_at)[1]
        if size < layout.size or at + size > end:
            raise unknown_layout(table)
        yield at, table.entries[at : at + size]
        at += size


def unknown_layout(table: Table) -> KernelError:
    """Return the refusal to touch a table that we do not understand."""
    return KernelError(f"table {table.label} is laid out in a way that is unknown to us: it is not touched")


def matches(family: Family, entry: bytes) -> Iterator[Extension]:
    """Yield the matches of *entry* in order."""
    layout = LAYOUTS[family]
    end = _OFFSETS.unpack_from(entry, layout.offsets_at)[0]
    at = layout.size
    while at < end:
        size, name, revision = _EXTENSION.unpack_from(entry, at)
        if size < _EXTENSION.size:
            return
        yield Extension(name.split(b"\0")[0], revision, entry[at + _EXTENSION.size : at + size])
        at += size


def target(family: Family, entry: bytes) -> Extension:
    """Return the target of *entry*; the standard target's name is empty."""
    at = target_at(family, entry)
    size, name, revision = _EXTENSION.unpack_from(entry, at)
    return Extension(name.split(b"\0")[0], revision, entry[at + _EXTENSION.size : at + size])


def target_at(family: Family, entry: bytes) -> int:
    """Return the offset of the target within *entry*."""
    at: int = _OFFSETS.unpack_from(entry, LAYOUTS[family].offsets_at)[0]
    return at


def verdict(data: bytes) -> int:
    """Return a standard target's verdict: below zero final, else the offset to go on at."""
    number: int = _VERDICT.unpack_from(data)[0]
    return number


def with_verdict(family: Family, entry: bytes, number: int) -> bytes:
    """Return *entry* with another verdict in its standard target."""
    at = target_at(family, entry) + _EXTENSION.size
    return entry[:at] + _VERDICT.pack(number) + entry[at + _VERDICT.size :]


def comment(family: Family, entry: bytes) -> str:
    """Return the text of *entry*'s first comment match; empty if it has none."""
    for match in matches(family, entry):
        if match.name == b"comment":
            return match.data.split(b"\0")[0].decode("utf-8", "backslashreplace")
    return ""


def mask(family: Family, entries: bytes) -> bytes:
    """Return one or more entries without what the kernel alters: counters, marks, a pinned program's descriptor."""
    masked = bytearray(entries)
    for start, end in _altered(family, entries):
        masked[start:end] = bytes(end - start)
    return bytes(masked)


def steady_bits(family: Family, entries: bytes) -> int:
    """Return all bits of *entries*, as one little-endian number, that :func:`mask` leaves."""
    bits = bytearray(b"\xff" * len(entries))
    for start, end in _altered(family, entries):
        bits[start:end] = bytes(end - start)
    return int.from_bytes(bits, "little")


def _altered(family: Family, entries: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of what the kernel alters."""
    layout = LAYOUTS[family]
    with_programs = b"bpf\0" in entries
    at = 0
    while at + layout.size <= len(entries):
        yield at + layout.nfcache_at, at + layout.offsets_at
        yield at + layout.comefrom_at, at + layout.size
        end = at + _OFFSETS.unpack_from(entries, at + layout.offsets_at)[1]
        if with_programs:
            yield from ((at + start, at + start + _UINT.size) for start in _descriptors(family, entries[at:end]))
        if end <= at:
            break  # not a table of the kernel's: what takes it apart says so
        at = end


def _descriptors(family: Family, entry: bytes) -> Iterator[int]:
    """Yield the offsets of the descriptors by which the kernel held pinned programs."""
    at = LAYOUTS[family].size
    for match in matches(family, entry):
        data_at = at + _EXTENSION.size
        if match.name == b"bpf" and match.revision and _BPF_MODE.unpack_from(match.data)[0] == _BPF_MODE_PATH_PINNED:
            yield data_at + _BPF_FD_AT
        at = data_at + len(match.data)


def masked(table: Table) -> Table:
    """Return *table* with all entries masked: equal for tables that treat every packet alike."""
    return Table(
        table.family,
        table.name,
        table.valid_hooks,
        table.hook_entry,
        table.underflow,
        table.number,
        mask(table.family, table.entries),
    )
