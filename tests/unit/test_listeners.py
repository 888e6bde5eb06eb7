"""Who listens: told by the kernel, for each family in which loopback answers."""

import socket
from collections.abc import Callable

import pytest

from nodeagent.netns.listeners import families_listening

V4, V6 = socket.AF_INET, socket.AF_INET6
LISTENERS = {
    "all of IPv4": (V4, "0.0.0.0", False, (4,)),
    "loopback": (V4, "127.0.0.1", False, (4,)),
    "another address of loopback": (V4, "127.0.0.2", False, ()),
    "both families by one socket": (V6, "::", False, (4, 6)),
    "all of IPv6 and nothing else": (V6, "::", True, (6,)),
    "loopback of IPv6": (V6, "::1", True, (6,)),
    "IPv4's loopback by a socket of IPv6": (V6, "::ffff:127.0.0.1", False, (4,)),
}


def listen(family: socket.AddressFamily, address: str, *, only: bool) -> socket.socket:
    sock = socket.socket(family)
    if family == V6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
    sock.bind((address, 0))
    sock.listen()
    return sock


@pytest.mark.parametrize("where", LISTENERS)
def test_the_families_in_which_a_redirected_connection_is_answered(where: str) -> None:
    family, address, only, expected = LISTENERS[where]
    with listen(family, address, only=only) as sock:
        assert families_listening(sock.getsockname()[1], socket.socket.close) == expected


@pytest.mark.parametrize("end", [socket.socket.close, lambda sock: sock.shutdown(socket.SHUT_RDWR)])
def test_who_has_gone_listens_no_more(end: Callable[[socket.socket], None]) -> None:
    with listen(V4, "127.0.0.1", only=False) as sock:
        port = sock.getsockname()[1]
        end(sock)
        assert families_listening(port, socket.socket.close) == ()


def test_who_only_has_the_port_does_not_listen() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert families_listening(sock.getsockname()[1], socket.socket.close) == ()
