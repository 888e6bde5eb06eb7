"""The kernel's legacy tables, as bytes: read one, replace one, add to its counters.

Sources: ``linux/netfilter/x_tables.h``, ``linux/netfilter_ipv4/ip_tables.h``,
``linux/netfilter_ipv6/ip6_tables.h``, ``linux/netfilter/xt_bpf.h`` (all of ``include/uapi``),
for 64-bit machines.  The two families differ in :data:`LAYOUTS` and nowhere else.

Promises: an open :class:`Kernel` belongs to the netns of the thread that opened it, for ever;
:func:`table_names` creates no table and loads no module.  Every other call here does create
the table that it names.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from nodeagent.errors import BusyError, KernelError
from nodeagent.model import Family

HOOKS: Final = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")  # enum nf_inet_hooks
ERROR_TARGET: Final = b"ERROR"  # XT_ERROR_TARGET: heads a user's chain, ends a table
COUNTER_SIZE: Final = 16  # struct xt_counters: packets, bytes

_SO_GET_INFO, _SO_GET_ENTRIES = 64, 65  # IPT_SO_GET_*, IP6T_SO_GET_*
_SO_SET_REPLACE, _SO_SET_ADD_COUNTERS = 64, 65  # IPT_SO_SET_*, IP6T_SO_SET_*
_INFO: Final = struct.Struct("=32s13I")  # struct ipt_getinfo
_GET_ENTRIES: Final = struct.Struct("=32sI4x")  # struct ipt_get_entries
_REPLACE: Final = struct.Struct("=32s14IQ")  # struct ipt_replace
_COUNTERS: Final = struct.Struct("=32sI4x")  # struct xt_counters_info
_EXTENSION: Final = struct.Struct("=H29sB")  # struct xt_entry_match, struct xt_entry_target
_OFFSETS: Final = struct.Struct("=HH")  # target_offset, next_offset
_UINT: Final = struct.Struct("=I")
_NO_MARK: Final = bytes(_UINT.size)
_VERDICT: Final = struct.Struct("=i")

_BPF_MODE: Final = struct.Struct("=H")  # struct xt_bpf_info_v1: mode, number, fd, path
_BPF_MODE_PATH_PINNED, _BPF_FD_AT = 1, 4
_NET: Final = Path("/proc/thread-self/net")
_READ_ATTEMPTS: Final = 20

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one family's entry (``struct ipt_entry``, ``struct ip6t_entry``) keeps what."""

    prefix: str
    domain: int
    level: int
    names: Path
    nfcache_at: int
    offsets_at: int
    comefrom_at: int
    counters_at: int
    size: int


LAYOUTS: Final = {
    Family.V4: Layout("ip", socket.AF_INET, socket.IPPROTO_IP, _NET / "ip_tables_names", 84, 88, 92, 96, 112),
    Family.V6: Layout("ip6", socket.AF_INET6, socket.IPPROTO_IPV6, _NET / "ip6_tables_names", 136, 140, 144, 152, 168),
}


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
    entries: bytes

    @property
    def label(self) -> str:
        """What people call it: ``"ip nat"``."""
        return f"{LAYOUTS[self.family].prefix} {self.name}"

    def hooks(self) -> Iterator[int]:
        """Yield the numbers of the hooks that the table has."""
        return (hook for hook in range(len(HOOKS)) if self.valid_hooks >> hook & 1)


def table_names(family: Family) -> tuple[str, ...]:
    """Return the tables that exist in the calling thread's netns, without creating one.

    ``/proc/self/net`` would be the main thread's, which may live elsewhere.

    Raises:
        KernelError: /proc does not say.
    """
    path = LAYOUTS[family].names
    try:
        with path.open("rb", buffering=0) as file:
            return tuple(file.read().decode("ascii").split())
    except FileNotFoundError:
        if (_NET / "dev").exists():
            return ()  # the module is not loaded: no table can be there
        raise KernelError(f"cannot read {_NET}: mount /proc of this PID namespace") from None
    except OSError as error:
        raise KernelError(f"cannot read {path}: {error.strerror}; it takes root") from None


def has_family(family: Family) -> bool:
    """Say whether the kernel speaks *family* at all (``ipv6.disable=1`` turns IPv6 off)."""
    try:
        socket.socket(LAYOUTS[family].domain, socket.SOCK_DGRAM).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return False
        raise KernelError(f"cannot open a socket for IPv{family}: {error.strerror}") from None
    return True


class Kernel:
    """The tables of one family in one netns: that of the thread that opened this."""

    def __init__(self, family: Family) -> None:
        """Open a socket; KernelError if that takes more privilege than there is."""
        self.family = family
        self._layout = LAYOUTS[family]
        try:
            self._socket = socket.socket(self._layout.domain, socket.SOCK_RAW, socket.IPPROTO_RAW)
        except OSError as error:
            message = f"cannot open a raw IPv{family} socket: {error.strerror}; it takes root, or CAP_NET_RAW"
            raise KernelError(message) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def read(self, name: str) -> Table:
        """Return the table; creates it where it does not exist.

        Raises:
            BusyError: it kept changing its size meanwhile.
            KernelError: there is no such table, or no privilege to read it.
        """
        for _ in range(_READ_ATTEMPTS):
            raw = self._get(_SO_GET_INFO, name, bytearray(_INFO.pack(name.encode(), *([0] * 13))))
            _, hooks, *points, number, size = _INFO.unpack(raw)
            request = bytearray(_GET_ENTRIES.size + size)  # zeroed: the kernel leaves padding as it finds it
            _GET_ENTRIES.pack_into(request, 0, name.encode(), size)
            try:
                entries = self._get(_SO_GET_ENTRIES, name, request)[_GET_ENTRIES.size :]
            except BlockingIOError:  # EAGAIN: another size by now
                continue
            return Table(self.family, name, hooks, tuple(points[:5]), tuple(points[5:]), number, entries)
        raise BusyError(f"table {self._layout.prefix} {name} keeps changing while it is read: try again")

    def replace(self, new: Table, number_before: int) -> bytes:
        """Put *new* in place of the table of its name; return the old one's counters, in order.

        *number_before* is how many entries the old one has.

        Raises:
            BlockingIOError: it has another number of entries by now; nothing was changed.
            KernelError: the kernel refuses; nothing was changed.
        """
        counters = ctypes.create_string_buffer(COUNTER_SIZE * number_before)
        head = _REPLACE.pack(
            new.name.encode(),
            new.valid_hooks,
            new.number,
            len(new.entries),
            *new.hook_entry,
            *new.underflow,
            number_before,
            ctypes.addressof(counters),
        )
        try:
            self._socket.setsockopt(self._layout.level, _SO_SET_REPLACE, head + new.entries)
        except BlockingIOError:
            raise
        except OSError as error:
            raise _refused(new.label, "replace", error) from None
        return counters.raw

    def add_counters(self, name: str, counters: bytes) -> None:
        """Add *counters*, one for each entry, to those of the table.

        Raises:
            OSError: EINVAL where the table has another number of entries by now.
        """
        head = _COUNTERS.pack(name.encode(), len(counters) // COUNTER_SIZE)
        self._socket.setsockopt(self._layout.level, _SO_SET_ADD_COUNTERS, head + counters)

    def _get(self, option: int, name: str, request: bytearray) -> bytes:
        # socket.getsockopt() takes no input and at most 1024 bytes.
        buffer = ctypes.byref(ctypes.c_char.from_buffer(request))
        length = ctypes.c_uint(len(request))
        if _libc.getsockopt(self._socket.fileno(), self._layout.level, option, buffer, ctypes.byref(length)):
            number = ctypes.get_errno()
            error = OSError(number, os.strerror(number))
            if number == errno.EAGAIN:
                raise error
            raise _refused(f"{self._layout.prefix} {name}", "read", error)
        return bytes(request)


_HINTS: Final = {
    errno.EPERM: "it takes root, or CAP_NET_ADMIN",
    errno.ENOPROTOOPT: "this kernel has no legacy iptables (CONFIG_NETFILTER_XTABLES_LEGACY); use the nft backend",
    errno.ENOENT: "it lacks the table, a match or a target that a rule needs, or a pinned program (-m bpf) is gone",
    errno.EBADF: "a rule holds an eBPF program by descriptor (-m bpf --fd), and cannot be written again",
}


def _refused(label: str, verb: str, error: OSError) -> KernelError:
    hint = _HINTS.get(error.errno or 0, "nothing was changed")
    return KernelError(f"cannot {verb} table {label}: {error.strerror}: {hint}")


# -- entries ------------------------------------------------------------------------------------


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
    layout = LAYOUTS[family]
    masked = bytearray(entries)
    with_programs = b"bpf\0" in entries
    at = 0
    while at + layout.size <= len(masked):
        masked[at + layout.nfcache_at : at + layout.offsets_at] = _NO_MARK
        masked[at + layout.comefrom_at : at + layout.size] = bytes(layout.size - layout.comefrom_at)
        end = at + _OFFSETS.unpack_from(masked, at + layout.offsets_at)[1]
        if with_programs:
            masked[at:end] = _mask_programs(family, bytes(masked[at:end]))
        if end <= at:
            break  # not a table of the kernel's: what takes it apart says so
        at = end
    return bytes(masked)


def _mask_programs(family: Family, entry: bytes) -> bytes:
    """Return *entry* without the descriptors by which the kernel held pinned programs."""
    masked = bytearray(entry)
    at = LAYOUTS[family].size
    for match in matches(family, entry):
        data_at = at + _EXTENSION.size
        if match.name == b"bpf" and match.revision and _BPF_MODE.unpack_from(match.data)[0] == _BPF_MODE_PATH_PINNED:
            _UINT.pack_into(masked, data_at + _BPF_FD_AT, 0)
        at = data_at + len(match.data)
    return bytes(masked)


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
