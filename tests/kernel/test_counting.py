"""Every kind of packet is counted once, in its class, under whom the pod dialled: real sockets, both backends."""

import socket
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass

import pytest

from nodeagent.model import Policy
from nodeagent.model.flow import FlowOwner
from nodeagent.programmer.process import ChildProgrammer
from tests.cases.policies import ports, ranges
from tests.kernel.conftest import BACKENDS, Pod
from tests.kernel.counting_lab import CountedTopology, Row, bypassed, intercepted, proxied
from tests.lab import Connection, Dial, NotConnectedError, Proto, Topology

pytestmark = pytest.mark.kernel

POLICY = Policy(
    exclude_ranges=ranges("198.51.100.0/24", "2001:db8:5::/48"), exclude_ports=ports(8443), dns_capture=True
)
OUTSIDE, OUTSIDE_6 = "203.0.113.10", "2001:db8:1::10"
EXCLUDED, EXCLUDED_6 = "198.51.100.7", "2001:db8:5::7"
RESOLVER, RESOLVER_6 = "10.96.0.10", "fd00:10:96::a"

Action = Callable[[Topology], object]


@dataclass(frozen=True)
class Scenario:
    """What is done, and the flows that it must leave."""

    id: str
    action: Action
    rows: tuple[Row, ...]


def connects(*dials: Dial) -> Action:
    """Return the action that makes these connections, each proven in both directions and reset.

    An orderly end may be answered by the kernel itself, from TIME_WAIT: those packets have no socket to count for.
    """

    def act(lab: Topology) -> None:
        for dial in dials:
            with suppress(NotConnectedError):  # what became of it is in the rows
                lab.client.open_connection(dial).abort()

    return act


def datagrams(family: int, *messages: tuple[str, int, bytes], connected: bool = False) -> Action:
    """Return the action that sends datagrams from one socket."""

    def act(lab: Topology) -> None:
        with lab.pod.socket(family, socket.SOCK_DGRAM, uid=1000, gid=1000) as sock:
            for address, port, payload in messages:
                if connected:
                    sock.connect((address, port))
                    sock.send(payload)
                else:
                    sock.sendto(payload, (address, port))

    return act


def resolves(address: str, proto: Proto, *, connected: bool = True) -> Action:
    """Return the action that asks a resolver, by a connected or an unconnected socket."""
    if connected:
        return lambda lab: lab.client.resolve("example.com", Dial(address, 53, proto))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return datagrams(family, (address, 53, b"not even a question"))


def pings(family: int, kind: int, address: str) -> Action:
    """Return the action that sends one echo request."""

    def act(lab: Topology) -> None:
        protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
        request = struct.pack("!BBHHH", 8 if family == socket.AF_INET else 128, 0, 0, 7, 1) + b"are you there?"
        checksum = ~(sum(struct.unpack("!11H", request)) % 0xFFFF) & 0xFFFF
        request = request[:2] + struct.pack("!H", checksum) + request[4:]
        with lab.pod.socket(family, kind, protocol, uid=0, gid=0) as sock:
            sock.sendto(request, (address, 0))

    return act


def forges_tcp(lab: Topology) -> None:
    """Send a TCP segment of our own making in each family, IP header and all."""
    tcp = struct.pack("!HHIIBBHHH", 40000, 443, 1, 0, 5 << 4, 0x10, 512, 0, 0)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 6, 0, b"\0" * 4, socket.inet_aton(OUTSIDE))
    addresses = (socket.inet_pton(socket.AF_INET6, address) for address in ("fd00:244:1::5", OUTSIDE_6))
    ip6 = struct.pack("!IHBB16s16s", 6 << 28, len(tcp), 6, 64, *addresses)
    for family, header, to in ((socket.AF_INET, ip, OUTSIDE), (socket.AF_INET6, ip6, OUTSIDE_6)):
        with lab.pod.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW, uid=0, gid=0) as sock:
            sock.sendto(header + tcp, (to, 0))


def alternates(lab: Topology) -> None:
    """Send by turns to two destinations from one unconnected socket, in each family."""
    for family, excluded, other in ((socket.AF_INET, EXCLUDED, OUTSIDE), (socket.AF_INET6, EXCLUDED_6, OUTSIDE_6)):
        datagrams(family, *[(excluded, 4444, b"a"), (other, 5555, b"bb")] * 5)(lab)


def sends_elsewhere_while_connected(lab: Topology) -> None:
    """Connect a datagram socket to one destination, and give another one along with every other datagram."""
    for family, resolver, other in ((socket.AF_INET, RESOLVER, OUTSIDE), (socket.AF_INET6, RESOLVER_6, OUTSIDE_6)):
        with lab.pod.socket(family, socket.SOCK_DGRAM, uid=1000, gid=1000) as sock:
            sock.connect((resolver, 53))
            for _ in range(3):
                sock.send(b"to the resolver")
                sock.sendto(b"past it", (other, 7777))


def passes_through(*dials: Dial) -> Action:
    """Return the action that makes connections which the sidecar passes on."""

    def act(lab: Topology) -> None:
        lab.sidecar.passthrough(on=True)
        try:
            connects(*dials)(lab)
        finally:
            lab.sidecar.passthrough(on=False)

    return act


def is_refused(*dials: Dial, behind_proxy: bool = False) -> Action:
    """Return the action that dials where nobody listens."""

    def act(lab: Topology) -> None:
        for port in {dial.port for dial in dials}:
            lab.refuse("tcp", port)
        (passes_through if behind_proxy else connects)(*dials)(lab)

    return act


def serves(proto: Proto) -> Action:
    """Return the action that lets the world dial a server in the pod."""

    def act(lab: Topology) -> None:
        lab.app.serve(proto, 8080)
        for address in ("10.244.1.5", "fd00:244:1::5"):
            assert lab.outside_client.connect(Dial(address, 8080, proto)).seen_by == "app-local"

    return act


def speaks_from_two_pids(lab: Topology) -> None:
    """Make a socket here, connect it there: it is the socket's maker who counts."""
    for address in (EXCLUDED, EXCLUDED_6):
        with closing(lab.client.socket(Dial(address, 4445))) as sock:
            sock.connect((address, 4445))  # this process is in another cgroup
            assert sock.recv(100).startswith(b"world ")
            Connection(sock).abort()


def both(do: Callable[[str], Action], *addresses: str) -> Action:
    """Return the action that does the same to each address, one of each family."""
    return lambda lab: [do(address)(lab) for address in addresses]


UID, GID = FlowOwner.UID, FlowOwner.GID
TCP4, UDP4, UDP6 = socket.AF_INET, socket.AF_INET, socket.AF_INET6
SCENARIOS = (
    Scenario("TCP over IPv4 is redirected", connects(Dial(OUTSIDE, 443)), (intercepted(OUTSIDE, 443),)),
    Scenario("TCP over IPv6 is redirected", connects(Dial(OUTSIDE_6, 443)), (intercepted(OUTSIDE_6, 443),)),
    Scenario(
        "TCP to a v4-mapped address is IPv4",
        connects(Dial(f"::ffff:{OUTSIDE}", 443)),
        (intercepted(OUTSIDE, 443),),
    ),
    Scenario(
        "the sidecar passes on what it intercepted",
        passes_through(Dial(OUTSIDE, 443), Dial(OUTSIDE_6, 444)),
        (intercepted(OUTSIDE, 443), proxied(OUTSIDE, 443), intercepted(OUTSIDE_6, 444), proxied(OUTSIDE_6, 444)),
    ),
    Scenario(
        "three connections to one destination are one flow",
        connects(*[Dial(OUTSIDE, 443)] * 3),
        (intercepted(OUTSIDE, 443, connections=3),),
    ),
    Scenario("an excluded range, IPv4", connects(Dial(EXCLUDED, 443)), (bypassed(EXCLUDED, 443),)),
    Scenario("an excluded range, IPv6", connects(Dial(EXCLUDED_6, 443)), (bypassed(EXCLUDED_6, 443),)),
    Scenario(
        "an excluded port",
        connects(Dial(OUTSIDE, 8443), Dial(OUTSIDE_6, 8443)),
        (bypassed(OUTSIDE, 8443), bypassed(OUTSIDE_6, 8443)),
    ),
    Scenario(
        "an app with the proxy's uid is an impostor",
        connects(Dial(OUTSIDE, 443, uid=1337), Dial(OUTSIDE_6, 443, uid=1337)),
        (bypassed(OUTSIDE, 443, owner=UID), bypassed(OUTSIDE_6, 443, owner=UID)),
    ),
    Scenario(
        "an app with the proxy's gid is an impostor",
        connects(Dial(OUTSIDE, 443, gid=1337), Dial(OUTSIDE_6, 443, gid=1337)),
        (bypassed(OUTSIDE, 443, owner=GID), bypassed(OUTSIDE_6, 443, owner=GID)),
    ),
    Scenario(
        "UDP, connected, IPv4",
        datagrams(UDP4, (OUTSIDE, 9999, b"x" * 10), (OUTSIDE, 9999, b"y" * 20), connected=True),
        (bypassed(OUTSIDE, 9999, "udp"),),
    ),
    Scenario(
        "UDP, connected, IPv6",
        datagrams(UDP6, (OUTSIDE_6, 9999, b"x" * 10), connected=True),
        (bypassed(OUTSIDE_6, 9999, "udp"),),
    ),
    Scenario("UDP, unconnected, IPv4", datagrams(UDP4, (OUTSIDE, 9998, b"x")), (bypassed(OUTSIDE, 9998, "udp"),)),
    Scenario("UDP, unconnected, IPv6", datagrams(UDP6, (OUTSIDE_6, 9998, b"x")), (bypassed(OUTSIDE_6, 9998, "udp"),)),
    Scenario(
        "UDP to a v4-mapped address is IPv4",
        datagrams(UDP6, (f"::ffff:{OUTSIDE}", 9997, b"x")),
        (bypassed(OUTSIDE, 9997, "udp"),),
    ),
    Scenario(
        "a datagram that will be fragmented is one packet, IPv4",
        datagrams(UDP4, (OUTSIDE, 9996, b"x" * 5000)),
        (bypassed(OUTSIDE, 9996, "udp"),),
    ),
    Scenario(
        "a datagram that will be fragmented is one packet, IPv6",
        datagrams(UDP6, (OUTSIDE_6, 9996, b"x" * 5000)),
        (bypassed(OUTSIDE_6, 9996, "udp"),),
    ),
    Scenario(
        "UDP that alternates between two destinations is two connections",
        alternates,
        tuple(
            bypassed(address, port, "udp")
            for port, addresses in ((4444, (EXCLUDED, EXCLUDED_6)), (5555, (OUTSIDE, OUTSIDE_6)))
            for address in addresses
        ),
    ),
    Scenario(
        "a datagram with an address of its own on a connected socket",
        sends_elsewhere_while_connected,
        (
            *(intercepted(address, 53, "udp") for address in (RESOLVER, RESOLVER_6)),
            *(bypassed(address, 7777, "udp") for address in (OUTSIDE, OUTSIDE_6)),
        ),
    ),
    Scenario("DNS over UDP, connected", resolves(RESOLVER, "udp"), (intercepted(RESOLVER, 53, "udp"),)),
    Scenario(
        "DNS over UDP, unconnected",
        resolves(RESOLVER, "udp", connected=False),
        (intercepted(RESOLVER, 53, "udp"),),
    ),
    Scenario("DNS over UDP, IPv6", resolves(RESOLVER_6, "udp"), (intercepted(RESOLVER_6, 53, "udp"),)),
    Scenario(
        "DNS over UDP, unconnected, IPv6",
        resolves(RESOLVER_6, "udp", connected=False),
        (intercepted(RESOLVER_6, 53, "udp"),),
    ),
    Scenario(
        "DNS over TCP",
        both(lambda address: resolves(address, "tcp"), RESOLVER, RESOLVER_6),
        (intercepted(RESOLVER, 53), intercepted(RESOLVER_6, 53)),
    ),
    Scenario(
        "a resolver that is excluded",
        both(lambda address: resolves(address, "udp"), EXCLUDED, EXCLUDED_6),
        (bypassed(EXCLUDED, 53, "udp"), bypassed(EXCLUDED_6, 53, "udp")),
    ),
    Scenario("a ping by a raw socket", pings(TCP4, socket.SOCK_RAW, OUTSIDE), (bypassed(OUTSIDE, 0, "icmp"),)),
    Scenario(
        "a ping by a raw socket, IPv6",
        pings(UDP6, socket.SOCK_RAW, OUTSIDE_6),
        (bypassed(OUTSIDE_6, 0, "icmpv6"),),
    ),
    Scenario(
        "a ping by a ping socket",
        lambda lab: [
            pings(family, socket.SOCK_DGRAM, address)(lab) for family, address in ((TCP4, OUTSIDE), (UDP6, OUTSIDE_6))
        ],
        (bypassed(OUTSIDE, 0, "icmp"), bypassed(OUTSIDE_6, 0, "icmpv6")),
    ),
    Scenario("TCP that a raw socket forges", forges_tcp, (bypassed(OUTSIDE, 443), bypassed(OUTSIDE_6, 443))),
    Scenario(
        "a refused connection",
        is_refused(Dial(EXCLUDED, 81), Dial(EXCLUDED_6, 81)),
        (bypassed(EXCLUDED, 81), bypassed(EXCLUDED_6, 81)),
    ),
    Scenario(
        "a connection refused behind the proxy",
        is_refused(Dial(OUTSIDE, 82), Dial(OUTSIDE_6, 82), behind_proxy=True),
        (intercepted(OUTSIDE, 82), proxied(OUTSIDE, 82), intercepted(OUTSIDE_6, 82), proxied(OUTSIDE_6, 82)),
    ),
    Scenario("an app that talks to an app over loopback", connects(Dial("127.0.0.1", 8080), Dial("::1", 8080)), ()),
    Scenario(
        "an app that talks to the pod's own address",
        connects(Dial("10.244.1.5", 8081), Dial("fd00:244:1::5", 8081)),
        (),
    ),
    Scenario("UDP over loopback", connects(Dial("127.0.0.1", 8082, "udp"), Dial("::1", 8082, "udp")), ()),
    Scenario("TCP to a node-local address", connects(Dial("169.254.20.10", 443)), (intercepted("169.254.20.10", 443),)),
    Scenario(
        "UDP to a node-local address",
        connects(Dial("169.254.20.10", 8125, "udp")),
        (bypassed("169.254.20.10", 8125, "udp"),),
    ),
    Scenario("somebody dials a server in the pod, TCP", serves("tcp"), ()),
    Scenario("somebody dials a server in the pod, UDP", serves("udp"), ()),
    Scenario(
        "a socket that a process of another pod connects",
        speaks_from_two_pids,
        tuple(bypassed(address, 4445) for address in (EXCLUDED, EXCLUDED_6)),
    ),
)


@pytest.fixture(params=BACKENDS, ids=str, scope="module")
def programmed(
    request: pytest.FixtureRequest, programmer: ChildProgrammer, counted: CountedTopology
) -> CountedTopology:
    """Return the counted pod under each backend's rules."""
    counted.topology.pod.set_sysctls({"net/ipv4/ping_group_range": "0 65535"})
    Pod(programmer, counted.topology.pod, request.param).apply(POLICY)
    return counted


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.id)
def test_what_leaves_is_counted_once_where_it_belongs(scenario: Scenario, programmed: CountedTopology) -> None:
    with programmed.expect(*scenario.rows):
        scenario.action(programmed.topology)
