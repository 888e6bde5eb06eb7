"""Frozen data that every part shares: policies, connections, decisions, rule sets, plans.

Nothing here computes more than a look-up, and nothing here touches the world.  All addresses
are :mod:`ipaddress` objects; ports are 0 to 65535; interface names are at most 15 bytes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Generic, TypeAlias, TypeVar

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
T = TypeVar("T")

LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
DNS_PORT = 53


class Family(IntEnum):
    """An IP version; its value is what :mod:`ipaddress` calls ``version``."""

    V4 = 4
    V6 = 6

    @property
    def bits(self) -> int:
        """Length of an address: 32 or 128."""
        return 32 if self is Family.V4 else 128


class Protocol(StrEnum):
    """What the rules tell apart; everything that is neither TCP nor UDP is ``other``."""

    TCP = "tcp"
    UDP = "udp"
    OTHER = "other"


class Verdict(StrEnum):
    """What did happen to a connection."""

    INTERCEPTED = "intercepted"
    BYPASSED = "bypassed"
    PROXY = "proxy"


class Reason(StrEnum):
    """Why it happened: those of the closed set that rules alone can give."""

    INCLUDED = "included"
    DNS_CAPTURE = "dns_capture"
    EXCLUDED_CIDR = "excluded_cidr"
    EXCLUDED_PORT = "excluded_port"
    EXCLUDED_INTERFACE = "excluded_interface"
    NOT_INCLUDED = "not_included"
    NON_TCP = "non_tcp"
    EXEMPT_OWNER = "exempt_owner"
    IPV6_UNMANAGED = "ipv6_unmanaged"
    LOOPBACK = "loopback"  # the pod talking to itself: never egress, never in the ledger


class Mode(StrEnum):
    """How far the agent goes with a pod."""

    ENFORCE = "enforce"
    OBSERVE = "observe"
    DISABLED = "disabled"


class Ipv6Mode(StrEnum):
    """What ``proxy.ipv6`` of the cluster configuration says."""

    INTERCEPT = "intercept"
    BYPASS = "bypass"


class BackendName(StrEnum):
    """How a rule set reaches the kernel."""

    NFT = "nft"
    LEGACY = "legacy"


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports *first* to *last*, both included.

    >>> str(PortRange(443, 443)), str(PortRange(7000, 7100))
    ('443', '7000-7100')
    """

    first: int
    last: int

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Sourced(Generic[T]):
    """A value, and the annotation or setting that it came from, in words for people."""

    value: T
    source: str


@dataclass(frozen=True)
class Ranges:
    """IP ranges of both families, or *every* address; never empty by accident.

    ``items`` are sorted by family, address and length, free of duplicates, with host bits
    masked off; they may nest.  ``every`` is the annotation's ``*``: then ``items`` is empty.
    """

    items: tuple[Sourced[Network], ...] = ()
    every: Sourced[str] | None = None

    @cached_property
    def _by_length(self) -> tuple[tuple[int, int, Mapping[int, Sourced[Network]]], ...]:
        tables: dict[tuple[int, int], dict[int, Sourced[Network]]] = {}
        for item in self.items:
            net = item.value
            table = tables.setdefault((net.version, net.prefixlen), {})
            table[int(net.network_address)] = item
        return tuple((v, length, tables[v, length]) for v, length in sorted(tables, reverse=True))

    def find(self, address: Address) -> Sourced[Network] | None:
        """Return the narrowest item that holds *address*; O(distinct prefix lengths)."""
        number = int(address)
        for version, length, table in self._by_length:
            if version == address.version:
                host_bits = address.max_prefixlen - length
                if found := table.get(number >> host_bits << host_bits):
                    return found
        return None

    def of(self, family: Family) -> tuple[Network, ...]:
        """Return the networks of one family, in canonical order."""
        return tuple(item.value for item in self.items if item.value.version == family)

    def __iter__(self) -> Iterator[Network]:
        return (item.value for item in self.items)


@dataclass(frozen=True, slots=True)
class Ports:
    """Port ranges, sorted and free of duplicates; they may overlap."""

    items: tuple[Sourced[PortRange], ...] = ()

    def find(self, port: int) -> Sourced[PortRange] | None:
        """Return the first item that holds *port*."""
        return next((item for item in self.items if port in item.value), None)

    def __iter__(self) -> Iterator[PortRange]:
        return (item.value for item in self.items)


@dataclass(frozen=True)
class Policy:
    """What should happen to a pod's egress: parsed, validated, immutable.

    ``sources`` maps a field's name to where its value came from, in words for people.
    """

    mode: Mode = Mode.ENFORCE
    include_ranges: Ranges = Ranges(every=Sourced("*", "default"))
    exclude_ranges: Ranges = Ranges()
    include_ports: Ports = Ports()
    exclude_ports: Ports = Ports()
    exclude_interfaces: tuple[Sourced[str], ...] = ()
    proxy_port: int = 15001
    proxy_uids: tuple[int, ...] = (1337,)
    proxy_gids: tuple[int, ...] = (1337,)
    dns_capture: bool = False
    dns_port: int = 15053
    ipv6: Ipv6Mode = Ipv6Mode.INTERCEPT
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Connection:
    """The first packet of a connection, as nat/OUTPUT sees it.

    ``interface`` is the device that the packet leaves through (``lo`` for loopback and the
    pod's own addresses); ``uid`` and ``gid`` are None for packets that no process sent.
    """

    destination: Address
    port: int
    protocol: Protocol = Protocol.TCP
    uid: int | None = None
    gid: int | None = None
    interface: str = "eth0"


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy makes of a connection.

    ``port`` is the sidecar's port where intercepted; ``rule`` the row of the precedence table
    (``"4: destination range excluded"``); ``matched`` the entry that matched, if the row has
    entries; ``source`` the annotation or setting that the row came from.
    """

    verdict: Verdict
    reason: Reason
    rule: str
    source: str
    port: int | None = None
    matched: str | None = None


# -- rule sets: a policy compiled, still independent of the backend ---------------------------


class Hook(StrEnum):
    """Where a chain hangs; the order of application, the reverse of removal."""

    KEEP = "keep"  # mangle OUTPUT: holds connection tracking, decides nothing
    ZONE_OUT = "zone_out"  # raw OUTPUT
    ZONE_IN = "zone_in"  # raw PREROUTING
    REDIRECT = "redirect"  # nat OUTPUT


@dataclass(frozen=True, slots=True)
class Match:
    """A conjunction; None matches everything.

    ``destination`` is a network, or the name of a :class:`RangeSet` of the same rule set.
    ``ports`` match if any of them does, and only with a protocol.  ``syn`` means the first
    packet of a TCP connection (SYN without ACK, RST, FIN).
    """

    family: Family | None = None
    out_interface: str | None = None
    not_in_interface: str | None = None
    uid: int | None = None
    gid: int | None = None
    protocol: Protocol | None = None
    destination: Network | str | None = None
    ports: tuple[PortRange, ...] = ()
    source_port: int | None = None
    syn: bool = False
    invalid: bool = False  # conntrack state INVALID


@dataclass(frozen=True, slots=True)
class Bypass:
    """Leave our chain; nothing of ours touches the packet."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """Send the connection to the sidecar's *port* on the loopback address of its family."""

    port: int


@dataclass(frozen=True, slots=True)
class Zone:
    """Track the packet in conntrack zone *number*."""

    number: int


@dataclass(frozen=True, slots=True)
class Nothing:
    """Match and go on: a rule that is there for what its match needs."""


Action: TypeAlias = Bypass | Redirect | Zone | Nothing


@dataclass(frozen=True, slots=True)
class Rule:
    """One match, one action, and why it is there."""

    match: Match
    action: Action
    why: str


@dataclass(frozen=True, slots=True)
class RangeSet:
    """Collapsed ranges of one family that are too many for plain rules."""

    name: str
    family: Family
    networks: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """A policy compiled: ordered rules per hook, and the sets that they name.

    ``id`` is 16 hex digits of a SHA-256 over the canonical form of the rest; equal rules have
    equal ids, whatever they were written like.  Hooks without rules are absent.
    """

    id: str
    chains: tuple[tuple[Hook, tuple[Rule, ...]], ...]
    sets: tuple[RangeSet, ...] = ()

    def chain(self, hook: Hook) -> tuple[Rule, ...]:
        """Return the rules at *hook*, first match first."""
        return dict(self.chains).get(hook, ())


# -- what the kernel holds, and what to do about it ---------------------------------------------


@dataclass(frozen=True, slots=True)
class KernelRule:
    """One rule as the kernel reported it.

    ``image`` holds the rule's normalised bytes (no counters, no handles, no positions);
    ``text`` is for people and decides nothing.
    """

    image: bytes
    text: str


@dataclass(frozen=True, slots=True)
class KernelState:
    """Our rules in one netns, by chain, content and order.

    Keys of ``chains`` name family, table and chain (``"ip/nat/NODEAGENT_OUTPUT"``,
    ``"inet/nodeagent/redirect"``); an entry ``"…#"`` holds a chain's own attributes, and sets
    are chains whose rules are their elements.  Two states are equal if the kernel would
    treat every packet alike.
    """

    backend: BackendName
    chains: Mapping[str, tuple[KernelRule, ...]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one backend found in the netns that its thread is in.

    ``state`` is None where nothing of ours stands.  ``ruleset_id`` is what our own rules say
    they are; the truth is ``state``.  ``ahead`` names strangers' rules that run before ours;
    ``foreign`` names other proxies' redirects (``"ISTIO_OUTPUT (ip nat, legacy)"``).
    ``in_use`` says whether anybody, we included, has rules in this backend.
    """

    state: KernelState | None = None
    ruleset_id: str | None = None
    ahead: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    in_use: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """A rule set encoded for one backend on this kernel: compile once, replay per pod.

    ``state`` is what :meth:`Backend.read` reports once ``payload`` has been written, found
    out in a scratch netns; ``payload`` means something to its backend only.
    """

    ruleset_id: str
    backend: BackendName
    state: KernelState
    payload: bytes


class ChangeKind(StrEnum):
    """What is wrong with a rule in the kernel, seen from the policy."""

    MISSING = "missing"
    EXTRA = "extra"
    AHEAD = "ahead"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between what should stand in the kernel and what does.

    ``position`` counts from 1 within ``chain``; ``text`` is the rule in question.
    """

    kind: ChangeKind
    chain: str
    position: int
    text: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What an apply would do.  An empty plan is the one definition of *converged*."""

    backend: BackendName
    ruleset_id: str | None
    changes: tuple[Change, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changes)
