"""Numbers for namespaces (nsid), and one socket that hears of nft changes in all that have one.

A namespace has a number only in the eyes of another: here, of the programmer's home.  Numbers
pin nothing, end with either namespace, and are then given again.  Sources: ``netlink(7)``,
``linux/net_namespace.h``, ``linux/nfnetlink.h``, ``net/netlink/af_netlink.c``.
"""

import errno
import socket
from struct import pack, unpack
from typing import Final

from nodeagent import netlink
from nodeagent.errors import KernelError

_RTM_NEWNSID, _RTM_GETNSID = 88, 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
_HEADER: Final = bytes(4)  # struct rtgenmsg, padded
_ANY: Final = -1

SOL_NETLINK: Final = 270
LISTEN_ALL_NSID: Final = 8
"""An option of a netlink socket, and the type of the ancillary data that it brings."""
_ADD_MEMBERSHIP: Final = 1
_NFNLGRP_NFTABLES: Final = 7
_SO_RCVBUFFORCE: Final = 33
_BUFFER: Final = 1 << 20


def give_number(descriptor: int) -> int:
    """Return the number of the namespace behind *descriptor*; it gets one if it has none."""
    try:
        with netlink.Link(socket.NETLINK_ROUTE) as link:
            wanted = netlink.attribute(_NETNSA_NSID, pack("=i", _ANY))
            try:
                link.request(_RTM_NEWNSID, _HEADER + wanted + netlink.attribute(_NETNSA_FD, pack("=I", descriptor)))
            except netlink.NetlinkError as error:
                if error.errno != errno.EEXIST:
                    raise
            return number_of(link, descriptor)
    except OSError as error:
        raise KernelError(f"the kernel does not number the namespace: {error.strerror}") from None


def number_of(link: netlink.Link, descriptor: int) -> int:
    """Return the number that the namespace behind *descriptor* has in the eyes of *link*'s; -1: none."""
    [answer] = link.ask(_RTM_GETNSID, _HEADER + netlink.attribute(_NETNSA_FD, pack("=I", descriptor)))
    found = dict(netlink.attributes(answer.payload[len(_HEADER) :]))
    return int(unpack("=i", found[_NETNSA_NSID])[0])


def listen() -> int:
    """Return a descriptor of a socket that hears of nft changes in every numbered namespace.

    Whoever holds it needs no privilege to read it.
    """
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, netlink.NETLINK_NETFILTER
        ) as sock:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            sock.bind((0, 0))
            sock.setsockopt(SOL_NETLINK, LISTEN_ALL_NSID, 1)
            sock.setsockopt(SOL_NETLINK, _ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
            return sock.detach()
    except OSError as error:
        raise KernelError(f"the kernel does not tell of nft changes: {error.strerror}") from None
