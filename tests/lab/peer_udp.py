"""The UDP half of a peer: one datagram in, one out, from the very address and port that the client wrote to."""

import ipaddress
import socket
import struct
from collections.abc import Callable

from tests.lab import dns
from tests.lab.peer_tcp import House, Role
from tests.lab.wire import HELLO, Address, Greeting, echo_line

# linux/in.h and linux/in6.h: not in Python's socket module.  The number of each option is also its message's type.
IP_TRANSPARENT, IP_RECVORIGDSTADDR, IP_PKTINFO = 19, 20, 8
IPV6_TRANSPARENT, IPV6_RECVORIGDSTADDR = 75, 74
_SOL = {socket.AF_INET: socket.SOL_IP, socket.AF_INET6: socket.IPPROTO_IPV6}
_TRANSPARENT = {socket.AF_INET: IP_TRANSPARENT, socket.AF_INET6: IPV6_TRANSPARENT}
_ORIGINAL = {socket.AF_INET: IP_RECVORIGDSTADDR, socket.AF_INET6: IPV6_RECVORIGDSTADDR}
_ASK_INFO = {socket.AF_INET: IP_PKTINFO, socket.AF_INET6: socket.IPV6_RECVPKTINFO}
_INFO = {socket.AF_INET: IP_PKTINFO, socket.AF_INET6: socket.IPV6_PKTINFO}
_CONTROL_SPACE = 256


def make_transparent(sock: socket.socket) -> None:
    """Let *sock* be bound to, and accept for, addresses that are not the machine's."""
    sock.setsockopt(_SOL[sock.family], _TRANSPARENT[sock.family], 1)


def serve_datagrams(sock: socket.socket, role: Role, house: House) -> Callable[[], None]:
    """Prepare *sock*; return what is to be called whenever it is readable."""
    option = (_ORIGINAL if role.transparent else _ASK_INFO)[sock.family]
    sock.setsockopt(_SOL[sock.family], option, 1)

    def drain() -> None:
        while True:
            try:
                data, control, _, source = sock.recvmsg(65535, _CONTROL_SPACE)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error for an earlier answer: its client has gone
                continue
            at = _written_to(sock, control)
            greeting = Greeting(role.who, at, at if role.transparent else None, source[:2])
            _reply(sock, greeting, _handle(data, greeting, house))

    return drain


def _handle(data: bytes, greeting: Greeting, house: House) -> bytes:
    if data.startswith(HELLO):
        token = data.removeprefix(HELLO).strip().decode("ascii", "replace")
        house.log.add("udp", greeting, token)
        return greeting.encode() + echo_line(greeting.who, token)
    house.log.add("udp", greeting)
    return dns.answer(data, greeting.who) or greeting.encode()


def _written_to(sock: socket.socket, control: list[tuple[int, int, bytes]]) -> Address:
    """Return the address and port in the datagram's own header, as the socket met it."""
    port: int = sock.getsockname()[1]
    packed = b""
    for _, kind, data in control:
        if kind == IP_RECVORIGDSTADDR:  # struct sockaddr_in
            port, packed = struct.unpack_from("!2xH4s", data)
        elif kind == IPV6_RECVORIGDSTADDR:  # struct sockaddr_in6
            port, packed = struct.unpack_from("!2xH4x16s", data)
        elif kind == IP_PKTINFO:  # struct in_pktinfo: index, local address, destination
            packed = data[8:12]
        elif kind == socket.IPV6_PKTINFO:  # struct in6_pktinfo: address, index
            packed = data[:16]
    return str(ipaddress.ip_address(packed)), port


def _reply(sock: socket.socket, greeting: Greeting, data: bytes) -> None:
    try:
        if greeting.original:
            # TPROXY took the datagram ahead of any socket bound to its address, so this one steals nothing.
            with socket.socket(sock.family, socket.SOCK_DGRAM) as voice:
                make_transparent(voice)
                voice.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                voice.bind(greeting.at)
                voice.sendto(data, greeting.source)
        else:
            sock.sendmsg([data], [(_SOL[sock.family], _INFO[sock.family], _speak_as(greeting.at))], 0, greeting.source)
    except OSError:
        # The client asks the log when no answer comes; a firewall under test may well refuse this one.
        return


def _speak_as(at: Address) -> bytes:
    packed = ipaddress.ip_address(at[0]).packed
    return struct.pack("=i4s4x", 0, packed) if len(packed) == 4 else struct.pack("=16si", packed, 0)
