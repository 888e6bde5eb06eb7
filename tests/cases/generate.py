"""Random policies and connections, aimed at the borders between the precedence rows.

Undirected generators hardly ever make two rows match at once, and a wrong order shows only
there.  So each case is made to match *two chosen rows*; :func:`matching_rows` says, row by row
and without regard to order, which ones do match, and so what was covered.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from itertools import combinations, cycle, islice
from random import Random

from nodeagent.decide import names_loopback
from nodeagent.model import (
    Address,
    Connection,
    Ipv6Mode,
    Network,
    Policy,
    PortRange,
    Ports,
    Protocol,
    Ranges,
    Sourced,
)

PROXY_UIDS, PROXY_GIDS, APP_IDS = (1337, 1338), (1337, 1400), (0, 1000, 1336)

EXTERNAL = ("203.0.113.10", "198.51.100.20", "10.96.0.10", "10.0.50.7", "9.9.1.1", "2001:db8::10", "fd00:99::7")
THROUGH_NET1 = ("172.16.9.9",)
LOOPBACK = ("127.0.0.1", "127.0.0.53", "127.1.2.3", "::1")
OWN = ("10.244.1.5", "192.168.77.5", "fd00:244:1::5")
PORTS = (53, 80, 443, 3306, 7050, 8080, 65535)

NEIGHBOURS = tuple((row, row + 1) for row in range(1, 10))
PAIRS = tuple(combinations(range(1, 11), 2))
CONNECTIONS_PER_POLICY = 5


@dataclass(frozen=True)
class Generated:
    """A policy, a connection under it, and the two rows that it was made for."""

    policy: Policy
    connection: Connection
    aimed_at: tuple[int, int]


def matching_rows(policy: Policy, connection: Connection) -> frozenset[int]:
    """Return every row that matches *connection*, whatever its place in the table."""
    c, address = connection, connection.destination
    has_port = c.protocol is not Protocol.OTHER
    included = any(address in net for net in policy.include_ranges if net.version == address.version)
    named = any(
        address in net and names_loopback(net) for net in policy.include_ranges if net.version == address.version
    )
    rows = {
        1: c.interface in {i.value for i in policy.exclude_interfaces},
        2: c.uid in policy.proxy_uids or c.gid in policy.proxy_gids,
        3: has_port and any(c.port in ports for ports in policy.exclude_ports),
        4: any(address in net for net in policy.exclude_ranges if net.version == address.version),
        5: policy.dns_capture and has_port and c.port == 53,
        6: c.interface == "lo" and not (address.is_loopback and named),
        7: c.protocol is not Protocol.TCP,
        8: any(c.port in ports for ports in policy.include_ports),
        9: policy.include_ranges.every is not None or included,
        10: True,
    }
    return frozenset(row for row, matches in rows.items() if matches)


def generate(random: Random, pair: tuple[int, int]) -> Iterator[Generated]:
    """Yield a case in which both rows of *pair* match, then other connections under its policy.

    A policy is slow to encode, a connection is fast to make.
    """
    connection = _connection(random, pair)
    policy = _policy(random, connection, pair)
    yield Generated(policy, connection, pair)
    for _ in range(CONNECTIONS_PER_POLICY - 1):
        yield Generated(policy, _connection(random, random.choice(PAIRS)), pair)


def _connection(random: Random, pair: tuple[int, int]) -> Connection:
    through = "lo" if 6 in pair else random.choice(("eth0", "eth0", "net1", "lo"))
    destination = {"eth0": EXTERNAL, "net1": THROUGH_NET1, "lo": LOOPBACK + OWN}[through]
    protocol = Protocol.UDP if 7 in pair else random.choice((Protocol.TCP, Protocol.TCP, Protocol.UDP))
    if 7 not in pair and not {8, 9}.isdisjoint(pair):
        protocol = Protocol.TCP
    return Connection(
        destination=ip_address(random.choice(destination)),
        port=53 if 5 in pair else random.choice(PORTS),
        protocol=protocol,
        uid=random.choice(APP_IDS),
        gid=random.choice(APP_IDS),
        interface=through,
    )


def _policy(random: Random, connection: Connection, pair: tuple[int, int]) -> Policy:
    """Start from noise, then switch on what the two rows need."""
    policy = _noise(random, connection)
    address, port = connection.destination, connection.port
    if 1 in pair:
        policy = replace(policy, exclude_interfaces=(Sourced(connection.interface, "case"),))
    if 2 in pair:
        by_uid = random.random() < 0.5
        uids, gids = ((connection.uid or 0, 4242), PROXY_GIDS) if by_uid else (PROXY_UIDS, (connection.gid or 0, 4242))
        policy = replace(policy, proxy_uids=uids, proxy_gids=gids)
    if 3 in pair:
        policy = replace(policy, exclude_ports=_ports((*policy.exclude_ports, _around_port(random, port))))
    if 4 in pair:
        policy = replace(policy, exclude_ranges=_ranges((*policy.exclude_ranges, _around(random, address))))
    if 5 in pair:
        policy = replace(policy, dns_capture=True)
    if 8 in pair:
        policy = replace(policy, include_ports=_ports((*policy.include_ports, _around_port(random, port))))
    if {6, 9}.issubset(pair):  # a range would name the loopback address, and so switch row 6 off
        policy = replace(policy, include_ranges=Ranges(every=Sourced("*", "case")))
    elif 9 in pair and not policy.include_ranges.every:
        policy = replace(policy, include_ranges=_ranges((*policy.include_ranges, _around(random, address))))
    return policy


def _noise(random: Random, connection: Connection) -> Policy:
    """Return a policy of which no exclusion matches *connection*."""
    others = [ip_address(a) for a in EXTERNAL + THROUGH_NET1 if ip_address(a) != connection.destination]
    far = [_around(random, a) for a in random.sample(others, k=random.randrange(4))]
    ranges = [net for net in far if net.version != connection.destination.version or connection.destination not in net]
    ports = [PortRange(p, p) for p in random.sample(PORTS, k=random.randrange(3)) if p != connection.port]
    every = Ranges(every=Sourced("*", "case"))
    return Policy(
        include_ranges=random.choice((every, Ranges(), _ranges(ranges[:1]))),
        exclude_ranges=_ranges(ranges[1:] + _crowd(random)),
        include_ports=random.choice((Ports(), _ports(ports[:1]))),
        exclude_ports=_ports(ports[1:] + _port_crowd(random, connection.port)),
        exclude_interfaces=random.choice(((), (Sourced("net7", "case"),))),
        dns_capture=random.random() < 0.3,
        ipv6=random.choice((Ipv6Mode.INTERCEPT, Ipv6Mode.INTERCEPT, Ipv6Mode.BYPASS)),
    )


def _crowd(random: Random) -> list[Network]:
    """Return, now and then, so many ranges that they become a set; none is ever dialled."""
    if random.random() > 0.15:
        return []
    return [ip_network(f"100.{64 + i // 128}.{i % 128 * 2}.0/24") for i in range(150)]


def _port_crowd(random: Random, port: int) -> list[PortRange]:
    """Return, now and then, more ports than one multiport match can hold."""
    if random.random() > 0.2:
        return []
    return [PortRange(p, p) for p in range(20001, 20041, 2) if p != port]


def _around(random: Random, address: Address) -> Network:
    """Return a range that holds *address*, and touches neither loopback nor everything."""
    length = random.choice((address.max_prefixlen, address.max_prefixlen - 8, address.max_prefixlen // 2))
    return ip_network((address, length), strict=False)


def _around_port(random: Random, port: int) -> PortRange:
    return PortRange(max(0, port - random.randrange(3)), min(65535, port + random.randrange(3)))


def _ranges(networks: Iterable[Network]) -> Ranges:
    unique = sorted(set(networks), key=lambda n: (n.version, n.network_address, n.prefixlen))
    return Ranges(tuple(Sourced(net, "case") for net in unique))


def _ports(ports: Iterable[PortRange]) -> Ports:
    return Ports(tuple(Sourced(p, "case") for p in sorted(set(ports))))


def sequence(seed: int, count: int) -> Iterator[Generated]:
    """Return *count* cases, all pairs of rows in turn, neighbours twice; the same for a seed."""
    random = Random(seed)
    aimed = (case for pair in cycle(NEIGHBOURS + PAIRS) for case in generate(random, pair))
    return islice(aimed, count)


def coverage(cases: Iterable[Generated]) -> dict[tuple[int, int], int]:
    """Return in how many of *cases* a pair of rows matches and decides: no row before it does."""
    counts: Counter[tuple[int, int]] = Counter()
    for case in cases:
        first, *others = sorted(matching_rows(case.policy, case.connection))
        counts.update((first, other) for other in others)
    return {pair: counts[pair] for pair in PAIRS}
