"""The TCP half of a peer: greet, write down, echo; and, as a proxy, splice to where the client wanted to go."""

import asyncio
import errno
import ipaddress
import itertools
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

from tests.lab import dns
from tests.lab.peer_log import Entry, Log
from tests.lab.wire import HELLO, Address, Greeting, echo_line

_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST has the same number
DNS_PORT = 53
_UPSTREAM_PORTS = range(10000, 15000)
"""Where a proxy's own connections come from.  Clients use others (`topology`): the two live in one namespace, dial the
same destinations, and must not inherit each other's entries in connection tracking through a port used again."""


@dataclass(frozen=True, slots=True)
class Role:
    """Who listens, and how: *transparent* means for every address (TPROXY); *dns* means the client speaks first."""

    who: str
    transparent: bool = False
    dns: bool = False


@dataclass(slots=True)
class House:
    """What the peers of one process share."""

    log: Log = field(default_factory=Log)
    passthrough: bool = False
    live: dict[Greeting, "Conversation"] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    upstream_ports: Iterator[int] = field(default_factory=lambda: itertools.cycle(_UPSTREAM_PORTS))


def original_destination(sock: socket.socket) -> Address | None:
    """Return what SO_ORIGINAL_DST says: the address before NAT; None if connection tracking does not know."""
    try:
        if sock.family == socket.AF_INET:  # struct sockaddr_in
            port, packed = struct.unpack_from("!2xH4s", sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16))
        else:  # struct sockaddr_in6
            port, packed = struct.unpack_from("!2xH4x16s", sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28))
    except OSError:
        return None
    return str(ipaddress.ip_address(packed)), port


class Conversation(asyncio.Protocol):
    """One accepted connection."""

    def __init__(self, role: Role, house: House) -> None:
        self._role, self._house = role, house
        self._pending = bytearray()
        self._splices = False
        self._upstream: asyncio.Transport | None = None
        self._for_upstream = bytearray()
        """What came before there was an upstream to send it to."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Write the arrival down, then greet."""
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        at = sock.getsockname()[:2]
        original = at if self._role.transparent else original_destination(sock)
        self._greeting = Greeting(self._role.who, at, original, transport.get_extra_info("peername")[:2])
        self._entry: Entry = self._house.log.add("tcp", self._greeting)
        self._house.live[self._greeting] = self
        self._speaks_dns = self._role.dns or (self._role.transparent and at[1] == DNS_PORT)
        if not self._speaks_dns:
            self._transport.write(self._greeting.encode())
        if self._house.passthrough and not self._role.dns and original not in {None, at}:
            self._splices = True
            task = asyncio.get_running_loop().create_task(self._splice(cast("Address", original)))
            self._house.tasks.add(task)
            task.add_done_callback(self._house.tasks.discard)

    def data_received(self, data: bytes) -> None:
        """Hand on what came, or echo it line by line, or answer it as a DNS message."""
        self._pending += data
        if self._speaks_dns and len(self._pending) >= len(HELLO):
            if not self._pending.startswith(HELLO):
                self._answer_dns()
                return
            self._speaks_dns = False
            self._transport.write(self._greeting.encode())
        while (end := self._pending.find(b"\n")) >= 0:
            line, self._pending = bytes(self._pending[:end]), self._pending[end + 1 :]
            self._answer(line.removeprefix(HELLO).decode("ascii", "replace"))
        if self._upstream:
            self._upstream.write(data)
        elif self._splices:
            self._for_upstream += data

    def _answer(self, token: str) -> None:
        if not self._entry.token:
            self._house.log.name(self._entry, token)
        if not self._splices:
            self.say(token)

    def _answer_dns(self) -> None:
        while len(self._pending) >= 2 and len(self._pending) >= (end := 2 + int.from_bytes(self._pending[:2], "big")):
            reply = dns.answer(bytes(self._pending[2:end]), self._role.who) or b""
            self._pending = self._pending[end:]
            self._transport.write(len(reply).to_bytes(2, "big") + reply)

    def say(self, token: str) -> None:
        """Send a line that the client need not have asked for."""
        self._transport.write(echo_line(self._role.who, token))

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the other leg of a splice end the same way."""
        self._house.live.pop(self._greeting, None)
        if self._upstream:
            end(self._upstream, exc)

    async def _splice(self, original: Address) -> None:
        try:
            loop = asyncio.get_running_loop()
            sock = await _connect(original, self._house.upstream_ports)
            self._upstream, _ = await loop.create_connection(lambda: _Upstream(self._transport), sock=sock)
        except OSError:
            self._transport.abort()
        else:
            self._upstream.write(bytes(self._for_upstream))
            if self._transport.is_closing():
                self._upstream.close()


async def _connect(destination: Address, ports: Iterator[int]) -> socket.socket:
    """Connect to *destination* from the next of *ports* that is free for it; OSError if it cannot be reached."""
    family = socket.AF_INET6 if ":" in destination[0] else socket.AF_INET
    for port in ports:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", port))
            await asyncio.get_running_loop().sock_connect(sock, destination)
        except OSError as error:
            sock.close()
            if error.errno not in {errno.EADDRINUSE, errno.EADDRNOTAVAIL}:
                raise
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise AssertionError("the ports go round for ever")


class _Upstream(asyncio.Protocol):
    """The proxy's own connection to where its client wanted to go."""

    def __init__(self, downstream: asyncio.Transport) -> None:
        self._downstream = downstream

    def data_received(self, data: bytes) -> None:
        self._downstream.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        end(self._downstream, exc)


def end(transport: asyncio.Transport, exc: Exception | None) -> None:
    """Close as the other leg closed: a reset is passed on as a reset, an orderly end as one."""
    if exc is None:
        transport.close()
        return
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
