"""Dial from inside a namespace and learn who answered.

The socket belongs to the namespace and to the uid and gid that are asked for; the process that uses it is the
test's own.  (So eBPF hooks that look at the *current* task see the test process: use `Netns.run` for those.)
"""

import ipaddress
import itertools
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass

from tests.lab import dns
from tests.lab.connection import Connection
from tests.lab.netns import Netns
from tests.lab.outcome import Outcome, Proto, failed, judge
from tests.lab.peers import Event
from tests.lab.wire import Address

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@dataclass(frozen=True, slots=True)
class Dial:
    """A connection to make: to whom, as whom, and from where."""

    dst: str
    port: int
    proto: Proto = "tcp"
    uid: int = 1000
    gid: int = 1000
    interface: str | None = None
    """Leave through this interface (SO_BINDTODEVICE)."""
    source: Address | None = None
    """Leave from this address and port (0: any)."""
    cgroup: str | None = None
    """The cgroup in which the socket is made; None: the one of the last dial, or of the pod's app."""
    timeout: float = 10.0
    """Seconds that silence may last; long, because where things work nothing waits for it."""

    @property
    def family(self) -> int:
        """The family of the socket; a v4-mapped address (::ffff:0:0/96) makes an IPv6 one."""
        return socket.AF_INET6 if ipaddress.ip_address(self.dst).version == 6 else socket.AF_INET


class NotConnectedError(Exception):
    """The dial came to nothing; `outcome` says how."""

    def __init__(self, dial: Dial, outcome: Outcome) -> None:
        super().__init__(f"{dial}: {outcome.verdict} ({outcome.error})")
        self.outcome = outcome


class Client:
    """Dials from one namespace."""

    def __init__(
        self,
        netns: Netns,
        *,
        prepare: Callable[[Dial], None] = lambda _: None,
        arrived: Callable[[str], Event | None] = lambda _: None,
    ) -> None:
        """Dial from *netns*; *prepare* is told of each dial in advance, *arrived* finds a token in the peers' logs."""
        self._netns, self._prepare, self._arrived = netns, prepare, arrived
        self._name, self._numbers = secrets.token_hex(4), itertools.count(1)  # count: safe for several threads

    def connect(self, dial: Dial) -> Outcome:
        """Dial, prove the path both ways, hang up; return what became of it."""
        try:
            with self.open_connection(dial) as connection:
                return connection.outcome
        except NotConnectedError as error:
            return error.outcome

    def open_connection(self, dial: Dial) -> Connection:
        """Dial and prove the path; return it open; NotConnectedError if nobody answers."""
        self._prepare(dial)
        token = f"{self._name}-{next(self._numbers)}"
        sock = self.socket(dial)
        connection = Connection(sock)
        try:
            sock.connect((dial.dst, dial.port))
            hops, _ = connection.ask(token)
        except OSError as error:
            connection.close()
            raise NotConnectedError(dial, self._without_answer(dial, token, error)) from error
        except BaseException:
            connection.close()
            raise
        connection.outcome = judge((dial.dst, dial.port), hops, token=token)
        return connection

    def resolve(self, name: str, dial: Dial) -> str:
        """Ask the resolver at *dial* for *name*, as any resolver library would; return the address it gives.

        `dns.MARKS` tells whose answer it is.  TimeoutError or another OSError if there is none.
        """
        self._prepare(dial)
        with self.socket(dial) as sock:
            sock.connect((dial.dst, dial.port))
            query = dns.query(name)
            if dial.proto == "udp":
                sock.sendall(query)
                return dns.address_in(sock.recv(512))
            sock.sendall(len(query).to_bytes(2, "big") + query)
            with sock.makefile("rb") as answers:
                return dns.address_in(answers.read(int.from_bytes(answers.read(2), "big")))

    def socket(self, dial: Dial) -> socket.socket:
        """Return the socket that *dial* asks for, not yet connected."""
        sock = self._netns.socket(dial.family, _KINDS[dial.proto], uid=dial.uid, gid=dial.gid, cgroup=dial.cgroup)
        try:
            sock.settimeout(dial.timeout)
            if dial.interface:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, dial.interface.encode())
            if dial.source:
                sock.bind(dial.source)
        except BaseException:
            sock.close()
            raise
        return sock

    def _without_answer(self, dial: Dial, token: str, error: OSError) -> Outcome:
        # A datagram may arrive although its answer is lost: then where it arrived is the verdict.
        event = self._arrived(token) if dial.proto == "udp" and isinstance(error, TimeoutError) else None
        if event:
            return judge((dial.dst, dial.port), (event.greeting,), token=token, answered=False)
        return failed(error, token=token)
