"""Connection tracking in this thread's namespace: who is still intercepted, forget DNS.

Sources: ``include/uapi/linux/netfilter/nfnetlink_conntrack.h``, ``nf_conntrack_common.h``
and ``nf_conntrack_tcp.h``.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TypeAlias

from nodeagent.errors import KernelError
from nodeagent.model import DNS_PORT
from nodeagent.netlink import NETLINK_NETFILTER, NLA_F_NESTED, Close, Link, attribute, attributes

_SUBSYSTEM = 1 << 8
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_TUPLE_ORIGINAL, _TUPLE_REPLY, _STATUS, _PROTOINFO, _ZONE = 1, 2, 3, 4, 18
_TUPLE_IP, _IPV4_SOURCE, _IPV6_SOURCE = 1, 1, 3
_TUPLE_PROTO, _PROTO_NUMBER, _PROTO_DESTINATION_PORT = 2, 1, 3
_PROTOINFO_TCP, _TCP_STATE = 1, 1
_DESTINATION_NAT = 1 << 5
_TCP_ENDED = {7, 8}  # TIME_WAIT, CLOSE
_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_LIMIT = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_GENERIC_HEADER = struct.Struct("=BBH")
_Entry: TypeAlias = tuple[int, dict[int, bytes]]


def count_intercepted(close: Close) -> int:
    """Return how many tracked connections still have their destination translated to loopback.

    That is what our redirects do; a stranger's translation to elsewhere is not ours to wait for.
    TCP in TIME_WAIT or CLOSE does not count: no packet of it needs the translation.

    Raises:
        KernelError: connection tracking cannot be looked at: unknown is not none.
    """
    with _kernel_errors(), Link(NETLINK_NETFILTER, close) as link:
        return sum(1 for entry in _entries(link) if _is_redirected(entry) and not _has_ended(entry))


def usage() -> tuple[int, int]:
    """Return how many connections this thread's namespace tracks, and how many it may.

    ``/proc/sys/net`` shows the namespace of whoever looks.
    """
    try:
        return int(_COUNT.read_text("ascii")), int(_LIMIT.read_text("ascii"))
    except OSError:
        return 0, 0  # the module is not loaded


def forget_dns(close: Close) -> int:
    """Delete the entries of DNS over UDP, so that new rules hold for open sockets as well.

    Returns how many; a mapping would otherwise outlive the rules that it came from.

    Raises:
        KernelError: connection tracking cannot be looked at, or refuses.
    """
    with _kernel_errors(), Link(NETLINK_NETFILTER, close) as link:
        dns = [entry for entry in _entries(link) if _original(entry) == (socket.IPPROTO_UDP, DNS_PORT)]
        return sum(_delete(link, entry) for entry in dns)


@contextmanager
def _kernel_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"connection tracking cannot be used: {error.strerror}; load nf_conntrack_netlink"
        raise KernelError(message) from None


def _entries(link: Link) -> Iterator[_Entry]:
    """Return (address family, attributes) of each entry."""
    for found in link.dump_frames(_GET, _GENERIC_HEADER.pack(0, 0, 0)):
        family, *_ = _GENERIC_HEADER.unpack_from(found.payload)
        yield family, dict(attributes(found.payload[_GENERIC_HEADER.size :]))


def _is_redirected(entry: _Entry) -> bool:
    """Say whether replies come from loopback, and the destination was another one."""
    status = entry[1].get(_STATUS, bytes(4))
    if not struct.unpack("!I", status)[0] & _DESTINATION_NAT:
        return False
    reply = dict(attributes(entry[1].get(_TUPLE_REPLY, b"")))
    ip = dict(attributes(reply.get(_TUPLE_IP, b"")))
    source = ip.get(_IPV4_SOURCE) or ip.get(_IPV6_SOURCE)
    return source is not None and ip_address(source).is_loopback


def _has_ended(entry: _Entry) -> bool:
    protocol = dict(attributes(entry[1].get(_PROTOINFO, b"")))
    state = dict(attributes(protocol.get(_PROTOINFO_TCP, b""))).get(_TCP_STATE, b"\0")
    return state[0] in _TCP_ENDED


def _original(entry: _Entry) -> tuple[int, int]:
    original = dict(attributes(entry[1].get(_TUPLE_ORIGINAL, b"")))
    proto = dict(attributes(original.get(_TUPLE_PROTO, b"")))
    number = proto.get(_PROTO_NUMBER, b"\0")[0]
    port = proto.get(_PROTO_DESTINATION_PORT, b"\0\0")
    return number, int(struct.unpack("!H", port)[0])


def _delete(link: Link, entry: _Entry) -> bool:
    family, found = entry
    body = attribute(_TUPLE_ORIGINAL | NLA_F_NESTED, found[_TUPLE_ORIGINAL])
    if _ZONE in found:
        body += attribute(_ZONE, found[_ZONE])
    try:
        link.request(_DELETE, _GENERIC_HEADER.pack(family, 0, 0) + body)
    except FileNotFoundError:  # it ended by itself meanwhile
        return False
    return True
