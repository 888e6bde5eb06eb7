"""The few kernel interfaces that namespaces need and Python 3.11 does not offer.

Sources: ``setns(2)``, ``unshare(2)``, ``ioctl_ns(2)``, ``socket(7)``; ``include/uapi/``
``linux/nsfs.h``, ``linux/sockios.h``, ``asm-generic/socket.h``, ``linux/rtnetlink.h``.
"""

import ctypes
import fcntl
import itertools
import os
import socket
import struct
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from nodeagent import netlink
from nodeagent.model import Address

CLONE_NEWNET = 0x40000000
NS_GET_USERNS = 0xB701
NS_GET_NSTYPE = 0xB703
SO_NETNS_COOKIE = 71  # Linux 5.14
SIOCGSKNS = 0x894C

_MOST_INTERFACES = 256

_libc = ctypes.CDLL(None, use_errno=True)


def unshare_netns() -> None:
    """Give this thread a new, empty network namespace."""
    _check(_libc.unshare(CLONE_NEWNET), "unshare a network namespace")


def set_netns(descriptor: int) -> None:
    """Move this thread into the network namespace of *descriptor*."""
    _check(_libc.setns(descriptor, CLONE_NEWNET), "enter the network namespace")


def is_netns(descriptor: int) -> bool:
    """Say whether *descriptor* is a network namespace and not something else."""
    try:
        return fcntl.ioctl(descriptor, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False


def is_initial() -> bool:
    """Say whether this thread is in the namespace that the kernel booted with.

    Its device queues' sysctls exist nowhere else (``net/core/sysctl_net_core.c``); and
    ``/proc/sys/net`` shows the namespace of whoever looks.
    """
    return Path("/proc/sys/net/core/netdev_max_backlog").exists()


def identity(descriptor: int) -> tuple[int, int]:
    """Return device and inode: unique among the namespaces that exist, reused later."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def user_namespace(descriptor: int) -> tuple[int, int] | None:
    """Return the identity of the user namespace that owns this network namespace; None: neither ours nor below it."""
    try:
        owner = fcntl.ioctl(descriptor, NS_GET_USERNS)
    except PermissionError:
        return None
    try:
        return identity(owner)
    finally:
        os.close(owner)


def own_user_namespace() -> tuple[int, int]:
    """Return the identity of this thread's user namespace."""
    status = Path("/proc/thread-self/ns/user").stat()
    return status.st_dev, status.st_ino


def socket_netns(sock: socket.socket) -> tuple[int, int]:
    """Return the identity of the namespace that *sock* really belongs to."""
    descriptor = fcntl.ioctl(sock.fileno(), SIOCGSKNS)
    try:
        return identity(descriptor)
    finally:
        os.close(descriptor)


def socket_cookie(sock: socket.socket) -> int | None:
    """Return the kernel's cookie of *sock*'s namespace, never reused; None before 5.14."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    except OSError:
        return None
    return int.from_bytes(raw, "little" if struct.pack("=H", 1)[0] else "big")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {what}: {os.strerror(number)}")


# -- devices --------------------------------------------------------------------------------

_DEVICES = Path("/proc/thread-self/net/dev")
_HEADER_LINES = 2
_SIOCGIFINDEX = 0x8933
_IFREQ = struct.Struct("=16si20x")


def interfaces() -> dict[int, str]:
    """Return the names of the network devices of this thread's namespace, by number; of very many, some.

    A name is whatever its owner made it: bytes that are no text are escaped.  Not by rtnetlink, as
    ``if_nameindex(3)`` has them: that waits for whoever changes a device anywhere on the node, and on a node where
    pods start and end that has been seen to take 200 ms.
    """
    with _DEVICES.open("rb") as file:
        lines = list(itertools.islice(file, _HEADER_LINES, _HEADER_LINES + _MOST_INTERFACES))
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for name in (line.partition(b":")[0].strip() for line in lines):
            with suppress(OSError):  # it has gone meanwhile
                _, number = _IFREQ.unpack(fcntl.ioctl(sock, _SIOCGIFINDEX, _IFREQ.pack(name, 0)))
                found[number] = name.decode("utf-8", "backslashreplace")
    return found


# -- addresses, by a dump of RTM_GETADDR ---------------------------------------------------

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_RTM_GETADDR = 22
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_ADDRESS_HEADER_SIZE = 8


def local_addresses() -> frozenset[Address]:
    """Return the addresses configured on any interface of this thread's namespace.

    Each family by itself: to list all of them at once, the kernel waits for whoever changes a network device anywhere
    on the node, and on a node that starts pods somebody always does.
    """
    with netlink.Link(socket.NETLINK_ROUTE) as link:
        headers = (bytes([family]).ljust(_ADDRESS_HEADER_SIZE, b"\0") for family in _FAMILIES)
        frames = (frame for header in headers for frame in link.dump_frames(_RTM_GETADDR, header))
        return frozenset(_address(frame.payload) for frame in frames)


def _address(message: bytes) -> Address:
    """Return the address of one RTM_NEWADDR: IFA_LOCAL where there is a peer."""
    found = dict(netlink.attributes(message[_ADDRESS_HEADER_SIZE:]))
    return ip_address(found.get(_IFA_LOCAL) or found[_IFA_ADDRESS])
