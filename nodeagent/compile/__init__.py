"""Compile a policy into a rule set.  Pure: no I/O, no clock, no logging.

The chains follow the precedence table of :mod:`nodeagent.decide` row by row, for both families
at once; a rule that concerns one family says so.  What does not depend on a family is written
once.  Backends split what their kernel interface cannot say in one rule; they never reorder.

Redirects match the first packet of a TCP connection only (``syn``): the packet of an older,
untracked connection would count as its first one, and redirecting it would reset it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import collapse_addresses

from nodeagent.compile.canonical import identify
from nodeagent.decide import names_loopback
from nodeagent.model import (
    DNS_PORT,
    Action,
    Bypass,
    Family,
    Hook,
    Ipv6Mode,
    Match,
    Network,
    Nothing,
    Policy,
    PortRange,
    Protocol,
    Ranges,
    RangeSet,
    Redirect,
    Rule,
    RuleSet,
    Zone,
)

PLAIN_RANGES = 100
"""Up to so many ranges of one family are plain rules; more become one set."""

DIRECT_DNS_ZONE = 53
"""Conntrack zone of DNS that is not captured; what is captured stays in the default zone.

The proxy asks upstream from ports that captured sockets used a moment ago.  In one zone its
packets would match their conntrack entries, and be redirected to itself.
"""

_TRANSPORTS = (Protocol.TCP, Protocol.UDP)


def compile_policy(policy: Policy) -> RuleSet:
    """Return the rules that give every connection the decision of :func:`decide`.

    >>> from nodeagent.model import Hook
    >>> for rule in compile_policy(Policy()).chain(Hook.REDIRECT): print(rule.why)
    exempt_owner
    exempt_owner
    loopback
    included
    """
    exclude = _Destinations("exclude", policy.exclude_ranges)
    include = _Destinations("include", policy.include_ranges)
    chains = {
        Hook.KEEP: (Rule(Match(invalid=True), Nothing(), "keep"),),
        Hook.ZONE_OUT: tuple(_zone_out(policy, exclude)),
        Hook.ZONE_IN: tuple(_zone_in(policy)),
        Hook.REDIRECT: tuple(_redirect(policy, exclude, include)),
    }
    present = tuple((hook, rules) for hook, rules in chains.items() if rules)
    return identify(present, exclude.sets + include.sets)


class _Destinations:
    """Collapsed ranges as matches: one a range, or one a family where they are many."""

    def __init__(self, name: str, ranges: Ranges) -> None:
        self.every = ranges.every is not None
        self.named_loopback = tuple(merge(n for n in ranges if names_loopback(n)))
        self.by_family = {family: tuple(merge(ranges.of(family))) for family in Family}
        self.sets = tuple(
            RangeSet(f"{name}{family}", family, networks)
            for family, networks in self.by_family.items()
            if len(networks) > PLAIN_RANGES
        )

    def matches(self) -> Iterator[tuple[Family, Network | str]]:
        """Return (family, network or name of a set) for all ranges, both families."""
        large = {s.family: s.name for s in self.sets}
        for family, networks in self.by_family.items():
            if family in large:
                yield family, large[family]
            else:
                yield from ((family, network) for network in networks)


def _redirect(policy: Policy, exclude: _Destinations, include: _Destinations) -> Iterator[Rule]:
    """Rows 1 to 9 in order; row 10 is the end of the chain."""
    yield from _exempt_owners_and_interfaces(policy, None)
    excluded = merge_ports(policy.exclude_ports)
    if excluded:
        for protocol in _TRANSPORTS:
            yield Rule(Match(protocol=protocol, ports=excluded), Bypass(), "excluded_port")
    for family, where in exclude.matches():
        yield Rule(Match(family, destination=where), Bypass(), "excluded_cidr")
    families = tuple(_managed(policy))
    if policy.dns_capture and not policy.exclude_ports.find(DNS_PORT):
        yield from _dns(policy, families)
    yield from _loopback(policy, include, families)
    yield from _included(policy, include, families)


def _exempt_owners_and_interfaces(policy: Policy, dns: Match | None) -> Iterator[Rule]:
    """Rows 1 and 2; with *dns*, what they mean for the zone of the packets it matches."""
    limit = dns or Match()
    action: Action = Zone(DIRECT_DNS_ZONE) if dns else Bypass()
    for interface in policy.exclude_interfaces:
        yield Rule(replace(limit, out_interface=interface.value), action, "excluded_interface")
    for uid in policy.proxy_uids:
        yield Rule(replace(limit, uid=uid), action, "exempt_owner")
    for gid in policy.proxy_gids:
        yield Rule(replace(limit, gid=gid), action, "exempt_owner")


def _managed(policy: Policy) -> Iterator[Family | None]:
    """Yield None for both families in one rule, or the only family that is redirected."""
    yield Family.V4 if policy.ipv6 is Ipv6Mode.BYPASS else None


def _dns(policy: Policy, families: tuple[Family | None, ...]) -> Iterator[Rule]:
    """Row 5."""
    for family in families:
        for protocol in _TRANSPORTS:
            match = Match(
                family=family,
                protocol=protocol,
                ports=(PortRange(DNS_PORT, DNS_PORT),),
                syn=protocol is Protocol.TCP,
            )
            yield Rule(match, Redirect(policy.dns_port), "dns_capture")


def _loopback(policy: Policy, include: _Destinations, families: tuple[Family | None, ...]) -> Iterator[Rule]:
    """Row 6, and the include ranges that name a loopback address."""
    for network in include.named_loopback:
        family = Family(network.version)
        if None in families or family in families:
            match = Match(
                family,
                out_interface="lo",
                protocol=Protocol.TCP,
                destination=network,
                syn=True,
            )
            yield Rule(match, Redirect(policy.proxy_port), "included")
    yield Rule(Match(out_interface="lo"), Bypass(), "loopback")


def _included(policy: Policy, include: _Destinations, families: tuple[Family | None, ...]) -> Iterator[Rule]:
    """Rows 8 and 9."""
    action = Redirect(policy.proxy_port)
    ports = merge_ports(policy.include_ports)
    for family in families:
        if ports and not include.every:
            match = Match(family=family, protocol=Protocol.TCP, ports=ports, syn=True)
            yield Rule(match, action, "included")
        if include.every:
            match = Match(family=family, protocol=Protocol.TCP, syn=True)
            yield Rule(match, action, "included")
    for network_family, where in include.matches():
        if None in families or network_family in families:
            match = Match(network_family, protocol=Protocol.TCP, destination=where, syn=True)
            yield Rule(match, action, "included")


def _zone_out(policy: Policy, exclude: _Destinations) -> Iterator[Rule]:
    """DNS over UDP that rows 1 to 4 leave alone is tracked in a zone of its own."""
    if not _has_zones(policy):
        return
    dns = PortRange(DNS_PORT, DNS_PORT)
    families = tuple(_managed(policy))
    for family in families:
        yield from _exempt_owners_and_interfaces(policy, Match(family, protocol=Protocol.UDP, ports=(dns,)))
    for family, where in exclude.matches():
        if None in families or family in families:
            match = Match(family, protocol=Protocol.UDP, destination=where, ports=(dns,))
            yield Rule(match, Zone(DIRECT_DNS_ZONE), "excluded_cidr")


def _zone_in(policy: Policy) -> Iterator[Rule]:
    """Give replies from the network to direct DNS: captured ones come from loopback."""
    if not _has_zones(policy):
        return
    for family in _managed(policy):
        match = Match(family, not_in_interface="lo", protocol=Protocol.UDP, source_port=DNS_PORT)
        yield Rule(match, Zone(DIRECT_DNS_ZONE), "direct_dns")


def _has_zones(policy: Policy) -> bool:
    return policy.dns_capture and not policy.exclude_ports.find(DNS_PORT)


def only_family(ruleset: RuleSet, family: Family) -> RuleSet:
    """Return what of *ruleset* concerns packets of one family; it has an ID of its own."""
    chains = tuple(
        (hook, tuple(r for r in rules if r.match.family in (None, family))) for hook, rules in ruleset.chains
    )
    return identify(chains, tuple(s for s in ruleset.sets if s.family is family))


def merge(networks: Iterable[Network]) -> Iterator[Network]:
    """Return the fewest networks that hold the same addresses, v4 before v6."""
    items = tuple(networks)
    for family in Family:
        one_family = [n for n in items if n.version == family]
        yield from collapse_addresses(one_family)  # type: ignore[type-var]  # one family


def merge_ports(ports: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """Return the fewest port ranges that hold the same ports, in order.

    >>> [str(p) for p in merge_ports([PortRange(80, 80), PortRange(81, 90), PortRange(5, 5)])]
    ['5', '80-90']
    """
    merged: list[PortRange] = []
    for ports_ in sorted(ports):
        if merged and ports_.first <= merged[-1].last + 1:
            merged[-1] = PortRange(merged[-1].first, max(merged[-1].last, ports_.last))
        else:
            merged.append(ports_)
    return tuple(merged)
