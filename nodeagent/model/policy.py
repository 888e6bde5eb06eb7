"""What should happen to a pod's egress, and what that means for one connection."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Generic, TypeVar

from nodeagent.model.network import Address, Family, Network, PortRange, Protocol

T = TypeVar("T")


class Verdict(StrEnum):
    """What did happen to a connection."""

    INTERCEPTED = "intercepted"
    BYPASSED = "bypassed"
    PROXY = "proxy"


class Reason(StrEnum):
    """Why it happened: a closed set.  The first block is what rules alone can give."""

    INCLUDED = "included"
    DNS_CAPTURE = "dns_capture"
    EXCLUDED_CIDR = "excluded_cidr"
    EXCLUDED_PORT = "excluded_port"
    EXCLUDED_INTERFACE = "excluded_interface"
    NOT_INCLUDED = "not_included"
    NON_TCP = "non_tcp"
    EXEMPT_OWNER = "exempt_owner"
    IPV6_UNMANAGED = "ipv6_unmanaged"
    OBSERVED = "observed"
    LOOPBACK = "loopback"  # the pod talking to itself: never egress, never in the ledger

    # What takes the kernel's word as well: leaks, first of all.
    BEFORE_RULES = "before_rules"
    PREEXISTING = "preexisting"
    RULES_MISSING = "rules_missing"
    CONNTRACK_LOST = "conntrack_lost"
    IMPERSONATED_PROXY = "impersonated_proxy"
    PROXY = "proxy"
    OVERFLOW = "overflow"
    UNKNOWN = "unknown"


class Mode(StrEnum):
    """How far the agent goes with a pod."""

    ENFORCE = "enforce"
    OBSERVE = "observe"
    DISABLED = "disabled"


class Ipv6Mode(StrEnum):
    """What ``proxy.ipv6`` of the cluster configuration says."""

    INTERCEPT = "intercept"
    BYPASS = "bypass"


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

    def covers(self, network: Network) -> bool:
        """Say whether one item holds all of *network*; O(distinct prefix lengths).

        >>> from ipaddress import ip_network
        >>> ranges = Ranges((Sourced(ip_network("10.0.0.0/8"), "default"),))
        >>> [ranges.covers(ip_network(net)) for net in ("10.1.0.0/16", "10.0.0.0/7", "fd00::/8")]
        [True, False, False]
        """
        number = int(network.network_address)
        for version, length, table in self._by_length:
            if version == network.version and length <= network.prefixlen:
                host_bits = network.max_prefixlen - length
                if number >> host_bits << host_bits in table:
                    return True
        return self.every is not None

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
