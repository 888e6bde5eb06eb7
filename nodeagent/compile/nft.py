"""Lower a rule set to nft's table, chains, sets and rules, and print them as ``nft list`` does.

Promises: :func:`text` is what ``nft list table inet nodeagent`` (nft 1.0.6) prints once the
``nft`` backend has written the rule set into an empty netns; a reviewer reads the data plane
in a diff of it.  Refuses nothing: what one rule cannot say becomes several, in order.

One ``inet`` table serves both families: a rule without a family is written once.  Few ports
are one plain rule a range, never an anonymous set: what an interval set holds becomes visible
a moment after the rules that use it (see :mod:`nodeagent.nft.replay`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from typing import Final, Literal, TypeAlias

from nodeagent.model import (
    Action,
    Bypass,
    Family,
    Hook,
    Match,
    Network,
    Nothing,
    PortRange,
    Protocol,
    RangeSet,
    Redirect,
    Rule,
    RuleSet,
    Zone,
)

TABLE: Final = "nodeagent"
"""Our table, of family ``inet``; all in it is ours, and nothing of ours is elsewhere."""

PLAIN_PORTS: Final = 100
"""Up to so many port ranges are plain rules; more become one set."""

COMMENT: Final = "nodeagent"
"""What the comment of every rule of ours begins with."""


@dataclass(frozen=True, slots=True)
class NftChain:
    """A base chain of policy accept; *hook* and *priority* as nft prints them."""

    name: str
    type: Literal["filter", "nat"]
    hook: Literal["prerouting", "output"]
    priority: int


CHAINS: Final[dict[Hook, NftChain]] = {
    Hook.KEEP: NftChain("keep", "filter", "output", -150),
    Hook.ZONE_OUT: NftChain("zone_out", "filter", "output", -300),
    Hook.ZONE_IN: NftChain("zone_in", "filter", "prerouting", -300),
    # "redirect" is a keyword of nft: a chain of that name can be listed, but not be asked for.  At -101 we run before
    # whoever else redirects at -100, whoever came first.
    Hook.REDIRECT: NftChain("intercept", "nat", "output", -101),
}
"""Our chains by hook; a rule set has those that it has rules for."""

_PRIORITIES: Final = {-300: "raw", -150: "mangle"}


# -- statements: each prints itself in nft's words ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Meta:
    """``meta nfproto|l4proto|oifname|iifname|skuid|skgid`` equals *value*, or not."""

    key: Literal["nfproto", "l4proto", "oifname", "iifname", "skuid", "skgid"]
    value: str | int
    negated: bool = False

    def __str__(self) -> str:
        prefix = "" if self.key.endswith("ifname") else "meta "
        return f"{prefix}{self.key} {'!= ' if self.negated else ''}{self._value()}"

    def _value(self) -> str:
        if not self.key.endswith("ifname"):
            return str(self.value)
        name = str(self.value)  # a star at the end would stand for any ending
        return f'"{name[:-1]}\\*"' if name.endswith("*") else f'"{name}"'


@dataclass(frozen=True, slots=True)
class Destination:
    """The destination address lies in a network, or in the set of that name."""

    family: Family
    where: Network | str

    def __str__(self) -> str:
        keyword = "ip" if self.family is Family.V4 else "ip6"
        where = f"@{self.where}" if isinstance(self.where, str) else _network(self.where)
        return f"{keyword} daddr {where}"


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the transport header lies in a range, or in the set of that name."""

    protocol: Protocol
    side: Literal["sport", "dport"]
    where: PortRange | str

    def __str__(self) -> str:
        where = f"@{self.where}" if isinstance(self.where, str) else str(self.where)
        return f"{self.protocol} {self.side} {where}"


@dataclass(frozen=True, slots=True)
class Syn:
    """The first packet of a TCP connection: SYN without ACK, RST and FIN."""

    def __str__(self) -> str:
        return "tcp flags syn / fin,syn,rst,ack"


@dataclass(frozen=True, slots=True)
class CtInvalid:
    """Connection tracking calls the packet invalid."""

    def __str__(self) -> str:
        return "ct state invalid"


@dataclass(frozen=True, slots=True)
class Return:
    """Leave the chain: its policy, accept, lets the packet go on to the next chain."""

    def __str__(self) -> str:
        return "return"


@dataclass(frozen=True, slots=True)
class RedirectTo:
    """Rewrite the destination to *port* on this netns' loopback address."""

    port: int

    def __str__(self) -> str:
        return f"redirect to :{self.port}"


@dataclass(frozen=True, slots=True)
class SetZone:
    """Track the packet in conntrack zone *number*."""

    number: int

    def __str__(self) -> str:
        return f"ct zone set {self.number}"


Statement: TypeAlias = Meta | Destination | Port | Syn | CtInvalid | Return | RedirectTo | SetZone


@dataclass(frozen=True, slots=True)
class NftRule:
    """One rule: its statements all have to hold, in order; *comment* says why it is there."""

    chain: str
    statements: tuple[Statement, ...]
    comment: str

    def __str__(self) -> str:
        words = " ".join(map(str, self.statements))
        return f'{words} comment "{self.comment}"'


Interval: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class NftSet:
    """A named interval set; *intervals* are (first, last) pairs, sorted, that do not touch."""

    name: str
    type: Literal["ipv4_addr", "ipv6_addr", "inet_service"]
    intervals: tuple[Interval, ...]


@dataclass(frozen=True, slots=True)
class NftTable:
    """A rule set in nft's terms; rules are ordered within their chain."""

    sets: tuple[NftSet, ...]
    chains: tuple[NftChain, ...]
    rules: tuple[NftRule, ...]


# -- lowering ---------------------------------------------------------------------------------------------------------


def lower(ruleset: RuleSet, generation: str = "a") -> NftTable:
    """Return *ruleset* in nft's terms; *generation* is the letter that ends the sets' names, if not empty.

    >>> from nodeagent.compile import compile_policy
    >>> from nodeagent.model import Policy
    >>> for rule in lower(compile_policy(Policy())).rules: print(*rule.statements)
    ct state invalid
    meta skuid 1337 return
    meta skgid 1337 return
    oifname "lo" return
    tcp flags syn / fin,syn,rst,ack redirect to :15001
    """
    lowering = _Lowering(ruleset.id, generation)
    rules = tuple(
        nft_rule for hook, chain in ruleset.chains for rule in chain for nft_rule in lowering.rules(hook, rule)
    )
    ranges = (lowering.range_set(s) for s in ruleset.sets)
    return NftTable((*ranges, *lowering.port_sets()), tuple(CHAINS[hook] for hook, _ in ruleset.chains), rules)


class _Lowering:
    """Remembers the sets of ports that the rules turned out to need."""

    def __init__(self, ruleset_id: str, generation: str) -> None:
        self._id = ruleset_id
        self._generation = generation
        self._ports: dict[tuple[PortRange, ...], str] = {}

    def rules(self, hook: Hook, rule: Rule) -> Iterator[NftRule]:
        """Return what *rule* becomes: one rule, or one for each of its port ranges."""
        # The permanent rule's comment never changes: a new rule set does not touch what keeps connections alive.
        comment = f"{COMMENT}:{self._id}:{rule.why}" if hook is Hook.REDIRECT else f"{COMMENT}:{rule.why}"
        for port in self._port_choices(rule.match.ports):
            statements = (*self._matches(rule.match, port), *_verdict(rule.action))
            yield NftRule(CHAINS[hook].name, statements, comment)

    def range_set(self, ranges: RangeSet) -> NftSet:
        """Return the set of *ranges*, which are collapsed already."""
        networks = sorted(ranges.networks, key=lambda n: int(n.network_address))
        intervals = ((int(n.network_address), int(n.broadcast_address)) for n in networks)
        kind: Literal["ipv4_addr", "ipv6_addr"] = "ipv4_addr" if ranges.family is Family.V4 else "ipv6_addr"
        return NftSet(self._name(ranges.name), kind, tuple(_join(intervals)))

    def port_sets(self) -> Iterator[NftSet]:
        """Return the sets of ports that :meth:`rules` met, in the order of their first use."""
        for ports, name in self._ports.items():
            yield NftSet(name, "inet_service", tuple(_join((p.first, p.last) for p in sorted(ports))))

    def _name(self, name: str) -> str:
        return f"{name}_{self._generation}" if self._generation else name

    def _port_choices(self, ports: tuple[PortRange, ...]) -> Iterable[PortRange | str | None]:
        if len(ports) > PLAIN_PORTS:
            return (self._ports.setdefault(ports, self._name(f"ports{len(self._ports) + 1}")),)
        return ports or (None,)

    def _matches(self, match: Match, port: PortRange | str | None) -> Iterator[Statement]:
        if match.family and match.destination is None:
            yield Meta("nfproto", f"ipv{match.family.value}")
        yield from _meta(match)
        if match.destination is not None:
            yield self._destination(match)
        if match.protocol:
            yield from _transport(match.protocol, match, port)
        if match.invalid:
            yield CtInvalid()

    def _destination(self, match: Match) -> Destination:
        where = match.destination
        if isinstance(where, str):
            if match.family is None:
                raise ValueError(f"a rule on the set {where!r} needs a family; give its match one")
            return Destination(match.family, self._name(where))
        assert where is not None  # noqa: S101  # the caller's condition, for the type checker
        return Destination(Family(where.version), where)


def _meta(match: Match) -> Iterator[Statement]:
    if match.out_interface is not None:
        yield Meta("oifname", match.out_interface)
    if match.not_in_interface is not None:
        yield Meta("iifname", match.not_in_interface, negated=True)
    if match.uid is not None:
        yield Meta("skuid", match.uid)
    if match.gid is not None:
        yield Meta("skgid", match.gid)


def _transport(protocol: Protocol, match: Match, port: PortRange | str | None) -> Iterator[Statement]:
    if protocol is Protocol.OTHER:
        yield Meta("l4proto", "tcp", negated=True)
        yield Meta("l4proto", "udp", negated=True)
        return
    if port is not None:
        yield Port(protocol, "dport", port)
    if match.source_port is not None:
        yield Port(protocol, "sport", PortRange(match.source_port, match.source_port))
    if match.syn:
        yield Syn()
    if port is None and match.source_port is None and not match.syn:
        yield Meta("l4proto", protocol.value)


def _verdict(action: Action) -> tuple[Statement, ...]:
    match action:
        case Redirect(port):
            return (RedirectTo(port),)
        case Zone(number):
            return (SetZone(number),)
        case Bypass():
            return (Return(),)
        case Nothing():
            return ()


def _join(intervals: Iterable[Interval]) -> Iterator[Interval]:
    """Join sorted intervals that touch: networks of odd sizes stay apart when collapsed.

    >>> list(_join([(1, 2), (3, 3), (5, 9)]))
    [(1, 3), (5, 9)]
    """
    joined: Interval | None = None
    for first, last in intervals:
        if joined and first <= joined[1] + 1:
            joined = joined[0], max(last, joined[1])
        else:
            if joined:
                yield joined
            joined = first, last
    if joined:
        yield joined


# -- text -------------------------------------------------------------------------------------------------------------

_PER_LINE: Final = {"ipv4_addr": 2, "ipv6_addr": 1, "inet_service": 5}
_LINE_BREAK: Final = ",\n\t\t\t     "


def text(table: NftTable) -> str:
    """Return *table* as ``nft list table inet nodeagent`` prints it."""
    blocks = [*map(_set_text, table.sets), *(_chain_text(chain, table.rules) for chain in table.chains)]
    return f"table inet {TABLE} {{\n" + "\n".join(blocks) + "}\n"


def interval_text(kind: str, first: int, last: int) -> str:
    """Return an element of a set of type *kind* as nft prints it.

    >>> interval_text("ipv4_addr", 0x0A000000, 0x0A0000FF), interval_text("inet_service", 80, 90)
    ('10.0.0.0/24', '80-90')
    """
    if kind == "inet_service":
        return str(PortRange(first, last))
    address = IPv4Address if kind == "ipv4_addr" else IPv6Address
    low, high = address(first), address(last)
    networks: list[Network] = list(summarize_address_range(low, high))
    return _network(networks[0]) if len(networks) == 1 else f"{low}-{high}"


def declaration(kind: str, hook: str, priority: int, policy: str = "accept") -> str:
    """Return the line that says where a chain hangs, as nft prints it."""
    return f"type {kind} hook {hook} priority {_PRIORITIES.get(priority, priority)}; policy {policy};"


def _set_text(nft_set: NftSet) -> str:
    elements = [interval_text(nft_set.type, *interval) for interval in nft_set.intervals]
    count = _PER_LINE[nft_set.type]
    lines = (", ".join(elements[i : i + count]) for i in range(0, len(elements), count))
    body = f"\t\ttype {nft_set.type}\n\t\tflags interval\n\t\telements = {{ {_LINE_BREAK.join(lines)} }}\n"
    return f"\tset {nft_set.name} {{\n{body}\t}}\n"


def _chain_text(chain: NftChain, rules: Iterable[NftRule]) -> str:
    lines = [
        declaration(chain.type, chain.hook, chain.priority),
        *(str(rule) for rule in rules if rule.chain == chain.name),
    ]
    return f"\tchain {chain.name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def _network(network: Network) -> str:
    """Return *network* as nft prints it: one of a single address as that address."""
    return str(network.network_address if network.num_addresses == 1 else network)
