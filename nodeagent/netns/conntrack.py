"""Connection tracking in this thread's namespace: who is still intercepted, forget DNS.

Sources: ``include/uapi/linux/netfilter/nfnetlink_conntrack.h``, ``nf_conntrack_common.h``
and ``nf_conntrack_tcp.h``.
"""

import errno
import socket
import struct
from collections.abc import Iterator

from nodeagent.errors import KernelError
from nodeagent.model import DNS_PORT
from nodeagent.netns import netlink

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 1 << 8
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_TUPLE_ORIGINAL, _STATUS, _PROTOINFO, _ZONE = 1, 3, 4, 18
_TUPLE_PROTO, _PROTO_NUMBER, _PROTO_DESTINATION_PORT = 2, 1, 3
_PROTOINFO_TCP, _TCP_STATE = 1, 1
_DESTINATION_NAT = 1 << 5
_TCP_ENDED = {7, 8}  # TIME_WAIT, CLOSE
_GENERIC_HEADER = struct.Struct("=BBH")


def count_intercepted() -> int:
    """Return how many tracked connections still have a translated destination.

    TCP in TIME_WAIT or CLOSE does not count: no packet of it needs the translation.

    Raises:
        KernelError: connection tracking cannot be looked at: unknown is not none.
    """
    return sum(1 for entry in _entries() if _is_translated(entry) and not _has_ended(entry))


def forget_dns() -> int:
    """Delete the entries of DNS over UDP, so that new rules hold for open sockets as well.

    Returns how many; a mapping would otherwise outlive the rules that it came from.

    Raises:
        KernelError: connection tracking cannot be looked at, or refuses.
    """
    forgotten = 0
    for entry in _entries():
        if _original(entry) == (socket.IPPROTO_UDP, DNS_PORT):
            forgotten += _delete(entry)
    return forgotten


def _entries() -> Iterator[tuple[int, dict[int, bytes]]]:
    """Return (address family, attributes) of each entry."""
    try:
        messages = netlink.dump(_NETLINK_NETFILTER, _GET, _GENERIC_HEADER.pack(0, 0, 0))
    except OSError as error:
        message = f"connection tracking cannot be read: {error.strerror}; load nf_conntrack_netlink"
        raise KernelError(message) from None
    for _, payload in messages:
        family, *_ = _GENERIC_HEADER.unpack_from(payload)
        yield family, netlink.attributes(payload[_GENERIC_HEADER.size :])


def _is_translated(entry: tuple[int, dict[int, bytes]]) -> bool:
    status = entry[1].get(_STATUS, bytes(4))
    return bool(struct.unpack("!I", status)[0] & _DESTINATION_NAT)


def _has_ended(entry: tuple[int, dict[int, bytes]]) -> bool:
    protocol = netlink.attributes(entry[1].get(_PROTOINFO, b""))
    state = netlink.attributes(protocol.get(_PROTOINFO_TCP, b"")).get(_TCP_STATE, b"\0")
    return state[0] in _TCP_ENDED


def _original(entry: tuple[int, dict[int, bytes]]) -> tuple[int, int]:
    original = netlink.attributes(entry[1].get(_TUPLE_ORIGINAL, b""))
    proto = netlink.attributes(original.get(_TUPLE_PROTO, b""))
    number = proto.get(_PROTO_NUMBER, b"\0")[0]
    port = proto.get(_PROTO_DESTINATION_PORT, b"\0\0")
    return number, int(struct.unpack("!H", port)[0])


def _delete(entry: tuple[int, dict[int, bytes]]) -> bool:
    family, found = entry
    body = netlink.attribute(_TUPLE_ORIGINAL | netlink.NESTED, found[_TUPLE_ORIGINAL])
    if _ZONE in found:
        body += netlink.attribute(_ZONE, found[_ZONE])
    try:
        netlink.request(_NETLINK_NETFILTER, _DELETE, _GENERIC_HEADER.pack(family, 0, 0) + body)
    except OSError as error:
        if error.errno == errno.ENOENT:  # it ended by itself meanwhile
            return False
        message = f"a conntrack entry cannot be deleted: {error.strerror}"
        raise KernelError(message) from None
    return True
