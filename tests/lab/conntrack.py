"""Fill a namespace's connection tracking with connections that are in use, as many as the kernel allows, or empty it.

    python -m tests.lab.conntrack fill|empty

`nf_conntrack_max` is the machine's: a namespace of its own cannot have a smaller one.  So the table is really full: the
entries come by netlink, assured ones, which the kernel throws out for nobody.  What it holds goes with the namespace.
Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h
"""

import socket
import struct
import sys
from pathlib import Path

from nodeagent.netlink import NETLINK_NETFILTER, NLA_F_NESTED, attribute

_NEW, _DELETE = 1 << 8, 1 << 8 | 2
_REQUEST, _CREATE = 0x1, 0x400
_TUPLE_ORIGINAL, _TUPLE_REPLY, _STATUS, _TIMEOUT = 1, 2, 3, 7
_SEEN_REPLY_ASSURED_CONFIRMED = 2 | 4 | 8
_AT_ONCE = 256
_COUNT, _LIMIT = (Path("/proc/sys/net/netfilter") / name for name in ("nf_conntrack_count", "nf_conntrack_max"))


def _tuple(kind: int, source: str, destination: str, ports: tuple[int, int]) -> bytes:
    addresses = attribute(1, socket.inet_aton(source)) + attribute(2, socket.inet_aton(destination))
    numbers = attribute(1, bytes([socket.IPPROTO_UDP]))
    numbers += attribute(2, ports[0].to_bytes(2, "big")) + attribute(3, ports[1].to_bytes(2, "big"))
    return attribute(kind | NLA_F_NESTED, attribute(1 | NLA_F_NESTED, addresses) + attribute(2 | NLA_F_NESTED, numbers))


def _entry(number: int) -> bytes:
    here, there, ports = "192.0.2.1", f"192.0.2.{2 + number // 60000}", (1 + number % 60000, 9)
    original = _tuple(_TUPLE_ORIGINAL, here, there, ports)
    reply = _tuple(_TUPLE_REPLY, there, here, (ports[1], ports[0]))
    state = attribute(_TIMEOUT, (3600).to_bytes(4, "big"))
    state += attribute(_STATUS, _SEEN_REPLY_ASSURED_CONFIRMED.to_bytes(4, "big"))
    return _message(_NEW, _CREATE, original + reply + state)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    payload = struct.pack("=BBH", socket.AF_INET, 0, 0) + body
    return struct.pack("=IHHII", 16 + len(payload), kind, _REQUEST | flags, 0, 0) + payload


def main(verb: str) -> None:
    """Do it in this process's namespace."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        if verb == "empty":
            netlink.send(_message(_DELETE, 0, b""))
            return
        for first in range(0, int(_LIMIT.read_text()) + _AT_ONCE, _AT_ONCE):
            netlink.send(b"".join(map(_entry, range(first, first + _AT_ONCE))))
            netlink.setblocking(False)  # noqa: FBT003  # the standard library's signature
            while _refused(netlink):
                pass
            netlink.setblocking(True)  # noqa: FBT003
    if int(_COUNT.read_text()) < int(_LIMIT.read_text()):
        sys.exit("the table is not full")


def _refused(netlink: socket.socket) -> bool:
    """Take what the kernel answers, which it does only where it refuses."""
    try:
        return bool(netlink.recv(65536))
    except (BlockingIOError, OSError):
        return False


if __name__ == "__main__":
    main(sys.argv[1])
