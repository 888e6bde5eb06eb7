"""Who listens in this thread's namespace: asked of the kernel, so that nobody's listener sees a connection of ours.

Sources: ``include/uapi/linux/inet_diag.h``, ``sock_diag.h``, ``include/net/tcp_states.h``.
"""

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.netlink import Close, Link, attributes

_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY: Final = 20  # SOCK_DIAG_BY_FAMILY
_LISTENS: Final = 1 << 10  # TCP_LISTEN
_ONLY_IPV6: Final = 11  # INET_DIAG_SKV6ONLY
_REQUEST: Final = struct.Struct("=BBBBI2s46x")  # inet_diag_req_v2; of the socket's id, the source port
_FOUND: Final = struct.Struct("=B3x2s2x16s48x")  # inet_diag_msg
_PORT: Final = struct.Struct("!H")


def families_listening(port: int, close: Close) -> tuple[int, ...]:
    """Return the IP versions in which a connection to *port* of loopback is answered over TCP.

    >>> with socket.create_server(("127.0.0.1", 0)) as server:
    ...     families_listening(server.getsockname()[1], socket.socket.close)
    (4,)

    Raises:
        KernelError: the kernel does not tell: unknown is not nobody.
    """
    try:
        with Link(_SOCK_DIAG, close) as link:
            found = {version for family in (socket.AF_INET, socket.AF_INET6) for version in _answer(link, family, port)}
    except OSError as error:
        message = f"who listens cannot be told: {error.strerror}; load tcp_diag"
        raise KernelError(message) from None
    return tuple(sorted(found))


def _answer(link: Link, family: int, port: int) -> Iterator[int]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _LISTENS, _PORT.pack(port))
    for frame in link.dump_frames(_BY_FAMILY, request):
        at, found, address = _FOUND.unpack_from(frame.payload)
        if found != _PORT.pack(port):
            continue
        if at == socket.AF_INET:
            yield from _heard(ip_address(address[:4]))
        else:
            alone = dict(attributes(frame.payload[_FOUND.size :])).get(_ONLY_IPV6, b"\0")[0]
            yield from _heard(ip_address(address), is_both=not alone)


def _heard(address: IPv4Address | IPv6Address, *, is_both: bool = False) -> Iterator[int]:
    """Yield the versions whose loopback address a listener at *address* answers."""
    inside = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    if inside:
        yield from _heard(inside)
        return
    if address.is_unspecified or address == (IPv4Address("127.0.0.1") if address.version == 4 else IPv6Address("::1")):  # noqa: PLR2004  # IP's
        yield address.version
        if is_both and address.is_unspecified:
            yield 4
