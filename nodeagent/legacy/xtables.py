"""The kernel's legacy tables: read one, replace one, add to its counters.

Sources: ``linux/netfilter/x_tables.h``, ``linux/netfilter_ipv4/ip_tables.h``,
``linux/netfilter_ipv6/ip6_tables.h`` (all of ``include/uapi``), for 64-bit machines.

Promises: an open :class:`Kernel` belongs to the netns of the thread that opened it, for ever;
:func:`table_names` creates no table and loads no module.  Every other call here does create
the table that it names.
"""

import ctypes
import errno
import os
import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from nodeagent.errors import BusyError, KernelError
from nodeagent.legacy.entries import COUNTER_SIZE, LAYOUTS, Table
from nodeagent.model import Family

_SO_GET_INFO, _SO_GET_ENTRIES = 64, 65  # IPT_SO_GET_*, IP6T_SO_GET_*
_SO_SET_REPLACE, _SO_SET_ADD_COUNTERS = 64, 65  # IPT_SO_SET_*, IP6T_SO_SET_*
_INFO: Final = struct.Struct("=32s13I")  # struct ipt_getinfo
_GET_ENTRIES: Final = struct.Struct("=32sI4x")  # struct ipt_get_entries
_REPLACE: Final = struct.Struct("=32s14IQ")  # struct ipt_replace
_COUNTERS: Final = struct.Struct("=32sI4x")  # struct xt_counters_info

_NET: Final = Path("/proc/thread-self/net")
_NAMES: Final = {Family.V4: _NET / "ip_tables_names", Family.V6: _NET / "ip6_tables_names"}
_DOMAINS: Final = {Family.V4: socket.AF_INET, Family.V6: socket.AF_INET6}
_LEVELS: Final = {Family.V4: socket.IPPROTO_IP, Family.V6: socket.IPPROTO_IPV6}
_READ_ATTEMPTS: Final = 20
MOST: Final = 16 << 20
"""Bytes of a table that are read at most, some 90,000 rules: who fills larger ones must not fill our memory too."""

_NAMES_SIZE: Final = 4096  # five names, one read

_libc = ctypes.CDLL(None, use_errno=True)


def table_names(family: Family) -> tuple[str, ...]:
    """Return the tables that exist in the calling thread's netns, without creating one.

    ``/proc/self/net`` would be the main thread's, which may live elsewhere.

    Raises:
        KernelError: /proc does not say.
    """
    path = _NAMES[family]
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a file object would take as long again
        try:
            return tuple(os.read(descriptor, _NAMES_SIZE).decode("ascii").split())
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        if (_NET / "dev").exists():
            return ()  # the module is not loaded: no table can be there
        raise KernelError(f"cannot read {_NET}: mount /proc of this PID namespace") from None
    except OSError as error:
        raise KernelError(f"cannot read {path}: {error.strerror}; it takes root") from None


def has_family(family: Family) -> bool:
    """Say whether the kernel speaks *family* at all (``ipv6.disable=1`` turns IPv6 off)."""
    try:
        socket.socket(_DOMAINS[family], socket.SOCK_DGRAM).close()
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
        self._level = _LEVELS[family]
        try:
            self._socket = socket.socket(_DOMAINS[family], socket.SOCK_RAW, socket.IPPROTO_RAW)
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
            KernelError: there is no such table, or no privilege to read it, or it is larger than anybody needs.
        """
        for _ in range(_READ_ATTEMPTS):
            raw = self._get(_SO_GET_INFO, name, bytearray(_INFO.pack(name.encode(), *([0] * 13))))
            _, hooks, *points, number, size = _INFO.unpack(raw)
            if size > MOST:
                label = f"{LAYOUTS[self.family].prefix} {name}"
                raise KernelError(
                    f"table {label} holds {number} entries, {size >> 20} MiB: more than {MOST >> 20} MiB are not read; "
                    "are that many rules in this network namespace needed?"
                )
            request = bytearray(_GET_ENTRIES.size + size)  # zeroed: the kernel leaves padding as it finds it
            _GET_ENTRIES.pack_into(request, 0, name.encode(), size)
            try:
                entries = self._get(_SO_GET_ENTRIES, name, request)[_GET_ENTRIES.size :]
            except BlockingIOError:  # EAGAIN: another size by now
                continue
            return Table(self.family, name, hooks, tuple(points[:5]), tuple(points[5:]), number, entries)
        raise BusyError(f"table {LAYOUTS[self.family].prefix} {name} keeps changing while it is read: try again")

    def replace(self, new: Table, number_before: int) -> bytes:
        """Put *new* in place of the table of its name; return the old one's counters, in order.

        *number_before* is how many entries the old one has.

        Raises:
            BlockingIOError: it has another number of entries by now, and is what it was.
            KernelError: the kernel refuses; the table is what it was.
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
            self._socket.setsockopt(self._level, _SO_SET_REPLACE, head + new.entries)
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
        self._socket.setsockopt(self._level, _SO_SET_ADD_COUNTERS, head + counters)

    def _get(self, option: int, name: str, request: bytearray) -> bytes:
        # socket.getsockopt() takes no input and at most 1024 bytes.
        buffer = ctypes.byref(ctypes.c_char.from_buffer(request))
        length = ctypes.c_uint(len(request))
        if _libc.getsockopt(self._socket.fileno(), self._level, option, buffer, ctypes.byref(length)):
            number = ctypes.get_errno()
            error = OSError(number, os.strerror(number))
            if number == errno.EAGAIN:
                raise error
            raise _refused(f"{LAYOUTS[self.family].prefix} {name}", "read", error)
        return bytes(request)


_HINTS: Final = {
    errno.EPERM: "it takes root, or CAP_NET_ADMIN",
    errno.ENOPROTOOPT: "this kernel has no legacy iptables (CONFIG_NETFILTER_XTABLES_LEGACY); use the nft backend",
    errno.ENOENT: "it lacks the table, a match or a target that a rule needs, or a pinned program (-m bpf) is gone",
    errno.EINVAL: "it does not allow a rule here; matching owners takes a netns of our own user namespace",
    errno.EBADF: "a rule holds an eBPF program by descriptor (-m bpf --fd), and cannot be written again",
}


def _refused(label: str, verb: str, error: OSError) -> KernelError:
    hint = _HINTS.get(error.errno or 0)
    return KernelError(f"cannot {verb} table {label}: {error.strerror}" + (f": {hint}" if hint else ""))
