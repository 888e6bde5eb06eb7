"""Lower a rule set to iptables-legacy rules of one family, and render them.  Pure.

Promises: rules keep their order; what :func:`render` prints is what ``iptables-legacy-save``
(or ``ip6tables-legacy-save``) prints once the rules stand, the lines apart that are not about
rules of ours: comments, policies, other tables.

Refuses what iptables would understand differently: interface names that are patterns to it,
and comments that python-iptables alters on their way (quotes, a leading ``!``).
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from itertools import groupby
from typing import Final

from nodeagent.errors import InputError, printable
from nodeagent.model import (
    Action,
    Bypass,
    Family,
    Hook,
    Match,
    Network,
    Nothing,
    PortRange,
    RangeSet,
    Redirect,
    Rule,
    RuleSet,
    Zone,
)

CHAIN_PREFIX: Final = "NODEAGENT_"
COMMENT_PREFIX: Final = "nodeagent:"
DEFAULT_BPFFS: Final = "/sys/fs/bpf"

TABLES: Final = ("mangle", "raw", "nat")
"""The tables that can hold rules of ours, in the order of application."""

_SYN: Final = ("tcp-flags", "FIN,SYN,RST,ACK SYN")
_MULTIPORT_SLOTS: Final = 15  # XT_MULTI_PORTS in linux/netfilter/xt_multiport.h; a range takes two
_EVERY_PORT: Final = (PortRange(0, 65535),)
_COMMENT: Final = re.compile(r"[a-z0-9:_-]+", re.ASCII)
_PROGRAM_VERSION: Final = b"lpm 1"  # part of a pin's name: another program gets another name

_PLACES: Final = {
    Hook.KEEP: ("mangle", "OUTPUT"),
    Hook.ZONE_IN: ("raw", "PREROUTING"),
    Hook.ZONE_OUT: ("raw", "OUTPUT"),
    Hook.REDIRECT: ("nat", "OUTPUT"),
}


@dataclass(frozen=True, slots=True)
class Extension:
    """A match or a target, and its options in the order in which it prints them."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        # iptables quotes a string that holds more than letters, digits, - and _; of ours, only comments are strings.
        words = (f'--{key} "{value}"' if key == "comment" else f"--{key} {value}" for key, value in self.options)
        return " ".join((self.name, *words))


@dataclass(frozen=True, slots=True)
class LegacyRule:
    """One rule in iptables' own terms; ``target`` None matches and goes on.

    >>> str(LegacyRule("nat", "X", out_interface="lo", target=Extension("RETURN")))
    '-A X -o lo -j RETURN'
    """

    table: str
    chain: str
    destination: str | None = None
    not_in_interface: str | None = None
    out_interface: str | None = None
    protocol: str | None = None
    matches: tuple[Extension, ...] = ()
    target: Extension | None = None

    def __str__(self) -> str:
        parts = (
            ("-A", self.chain),
            ("-d", self.destination),
            ("! -i", self.not_in_interface),
            ("-o", self.out_interface),
            ("-p", self.protocol),
            *(("-m", str(match)) for match in self.matches),
            ("-j", str(self.target) if self.target else None),
        )
        return " ".join(f"{option} {value}" for option, value in parts if value is not None)


def lower(ruleset: RuleSet, family: Family, bpffs: str = DEFAULT_BPFFS) -> tuple[LegacyRule, ...]:
    """Return *ruleset*'s rules of one family, in the order in which iptables-save prints them.

    *bpffs* is where the programs of its range sets are pinned (:func:`pin_path`).

    Raises:
        InputError: iptables cannot say an interface or a comment.
    """
    pins = {ranges.name: pin_path(ranges, bpffs) for ranges in ruleset.sets}
    rules: list[LegacyRule] = []
    for hook, (table, chain) in _PLACES.items():
        own = chain if hook is Hook.KEEP else CHAIN_PREFIX + chain
        lowered = [
            replace(legacy, table=table, chain=own)
            for rule in ruleset.chain(hook)
            if rule.match.family in (None, family)
            for legacy in _lower_rule(rule, pins)
        ]
        if lowered and own != chain:
            note = ruleset.id if hook is Hook.REDIRECT else "zones"
            rules.append(LegacyRule(table, chain, matches=(_comment(note),), target=Extension(own)))
        rules += lowered
    return tuple(sorted(rules, key=_save_order))


def render(rules: Iterable[LegacyRule]) -> str:
    """Return the text of *rules*, which must be in the order of :func:`lower`.

    ``iptables-legacy-restore --noflush`` takes it, given a netns without rules of ours.
    """
    return "".join(_render_table(table, tuple(group)) for table, group in groupby(rules, lambda rule: rule.table))


def pin_path(ranges: RangeSet, bpffs: str = DEFAULT_BPFFS) -> str:
    """Return where the program that matches *ranges* is pinned: equal ranges, equal path."""
    content = "\n".join(map(str, ranges.networks)).encode("ascii")
    digest = hashlib.sha256(b"%b\n%d\n%b" % (_PROGRAM_VERSION, ranges.family, content)).hexdigest()
    return f"{bpffs}/nodeagent/{digest[:32]}-{ranges.family}"


def _save_order(rule: LegacyRule) -> tuple[int, bool, str]:
    """Order by table, built-in chains first (in the order of _PLACES), then ours by name."""
    own = rule.chain.startswith(CHAIN_PREFIX)
    return TABLES.index(rule.table), own, rule.chain if own else ""


def _render_table(table: str, rules: tuple[LegacyRule, ...]) -> str:
    chains = sorted({rule.chain for rule in rules if rule.chain.startswith(CHAIN_PREFIX)})
    lines = (f"*{table}", *(f":{chain} - [0:0]" for chain in chains), *map(str, rules), "COMMIT")
    return "\n".join(lines) + "\n"


def _lower_rule(rule: Rule, pins: dict[str, str]) -> Iterator[LegacyRule]:
    """Yield *rule*, once for each group of ports that one rule can hold."""
    match = rule.match
    for ports in _port_groups(match.ports):
        network = match.destination if not isinstance(match.destination, str) else None
        yield LegacyRule(
            table="",
            chain="",
            destination=_network_text(network) if network is not None else None,
            not_in_interface=_interface(match.not_in_interface),
            out_interface=_interface(match.out_interface),
            protocol=match.protocol.value if match.protocol else None,
            matches=(*_matches(match, ports, pins), _comment(rule.why)),
            target=_target(rule.action),
        )


def _matches(match: Match, ports: tuple[PortRange, ...], pins: dict[str, str]) -> Iterator[Extension]:
    """Yield the extensions, cheapest first; a rule's comment comes last, where it costs least."""
    options = []
    if match.source_port is not None:
        options.append(("sport", str(match.source_port)))
    if len(ports) == 1 and ports != _EVERY_PORT:
        options.append(("dport", _ports_text(ports)))
    if match.syn:
        options.append(_SYN)
    if options and match.protocol:
        yield Extension(match.protocol.value, tuple(options))
    if len(ports) > 1:
        yield Extension("multiport", (("dports", _ports_text(ports)),))
    if match.uid is not None:
        yield Extension("owner", (("uid-owner", str(match.uid)),))
    if match.gid is not None:
        yield Extension("owner", (("gid-owner", str(match.gid)),))
    if isinstance(match.destination, str):
        yield Extension("bpf", (("object-pinned", pins[match.destination]),))
    if match.invalid:
        yield Extension("conntrack", (("ctstate", "INVALID"),))


def _target(action: Action) -> Extension | None:
    match action:
        case Bypass():
            return Extension("RETURN")
        case Redirect(port):
            return Extension("REDIRECT", (("to-ports", str(port)),))
        case Zone(number):
            return Extension("CT", (("zone", str(number)),))
        case Nothing():
            return None


def _port_groups(ports: tuple[PortRange, ...]) -> Iterator[tuple[PortRange, ...]]:
    """Yield *ports* in runs that one multiport match can hold; one empty run if there are none."""
    group: list[PortRange] = []
    used = 0
    for port in ports:
        slots = 1 if port.first == port.last else 2
        if used + slots > _MULTIPORT_SLOTS:
            yield tuple(group)
            group, used = [], 0
        group.append(port)
        used += slots
    yield tuple(group)


def _ports_text(ports: tuple[PortRange, ...]) -> str:
    return ",".join(str(port).replace("-", ":") for port in ports)


def _interface(name: str | None) -> str | None:
    if name is not None and (name.endswith("+") or name.startswith("!") or not name):
        message = f"interface {printable(name)!r}: iptables reads it as a pattern; use the nft backend, or rename it"
        raise InputError(message)
    return name


def _comment(note: str) -> Extension:
    if not _COMMENT.fullmatch(note):
        message = f"rule's reason {printable(note)!r}: only lower case, digits and :_- reach the kernel unaltered"
        raise InputError(message)
    return Extension("comment", (("comment", COMMENT_PREFIX + note),))


def _network_text(network: Network) -> str | None:
    """Return the network as iptables prints it, None for every address: no ``-d`` then."""
    if network.prefixlen == 0:
        return None
    address = network.network_address
    text = _ipv6_text(address) if isinstance(address, IPv6Address) else str(address)
    return f"{text}/{network.prefixlen}"


def _ipv6_text(address: IPv6Address) -> str:
    """Return the address as inet_ntop(3) writes it: embedded IPv4 addresses with dots.

    >>> _ipv6_text(IPv6Address("::ffff:10.0.0.0")), _ipv6_text(IPv6Address("::1"))
    ('::ffff:10.0.0.0', '::1')
    """
    number = int(address)
    low = ".".join(map(str, address.packed[12:]))
    if number >> 32 == 0xFFFF:  # noqa: PLR2004  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2
        return f"::ffff:{low}"
    if number >> 32 == 0 and number >> 16:
        return f"::{low}"
    return str(address)
