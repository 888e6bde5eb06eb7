"""What other people's tables mean for ours: redirects of other proxies, and rules that run first.

Reads every family and changes nothing.  iptables-nft's rules are nft rules like any other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import unpack
from typing import Final

from nodeagent.compile.foreign import other_proxy
from nodeagent.compile.nft import CHAINS
from nodeagent.errors import printable
from nodeagent.model import Hook
from nodeagent.netlink import attributes, string
from nodeagent.nft.expressions import GOTO, JUMP, expressions, redirects, verdict
from nodeagent.nft.state import is_own
from nodeagent.nft.wire import Kind, Message, NetfilterSocket, Proto, text_attribute

_OUTPUT: Final = 3  # NF_INET_LOCAL_OUT
_IP_FAMILIES: Final = {Proto.ip, Proto.ip6, Proto.inet}


@dataclass(frozen=True, slots=True)
class _NatChain:
    """A stranger's chain at the output hook that may rewrite destinations."""

    family: int
    table: str
    name: str
    priority: int

    def __str__(self) -> str:
        return f"{printable(self.name)} ({Proto(self.family).name} {printable(self.table)}, nft)"


def named_proxies(tables: Sequence[Message], chains: Sequence[Message]) -> Iterator[str]:
    """Return the tables and chains that carry another proxy's name, for people."""
    for found in tables:
        name = string(dict(attributes(found.body))[1])
        if other_proxy(name):
            yield f"table {printable(name)} ({_family(found.family)}, nft)"
    for chain in chains:
        fields = dict(attributes(chain.body))
        table, name = string(fields[1]), string(fields[3])
        if other_proxy(name) and not other_proxy(table):
            yield f"{printable(name)} ({_family(chain.family)} {printable(table)}, nft)"


class NatRules:
    """Strangers' nat chains at the output hook, and the rules that a packet can reach from there."""

    def __init__(self, netfilter: NetfilterSocket, chains: Sequence[Message]) -> None:
        self._bases = [base for chain in chains if not is_own(chain) for base in _output_nat(chain)]
        self.messages = [
            rule
            for family, table in sorted({(base.family, base.table) for base in self._bases})
            for rule in netfilter.dump(Kind.GETRULE, family, text_attribute(1, table))
        ]
        self._rules: dict[tuple[int, str, str], list[bytes]] = {}
        for rule in self.messages:
            fields = dict(attributes(rule.body))
            key = rule.family, string(fields[1]), string(fields[2])
            self._rules.setdefault(key, []).append(fields.get(4, b""))

    def ahead(self) -> Iterator[str]:
        """Return the chains with rules in them that run before ours, or may: equal priorities have no order."""
        ours = CHAINS[Hook.REDIRECT].priority
        for base in self._bases:
            count = len(self._rules.get((base.family, base.table, base.name), ()))
            if count and base.priority <= ours:
                yield f"{base} at priority {base.priority}, {count} rule{'s' * (count > 1)}"

    def redirecting_to(self, port: int) -> Iterator[str]:
        """Return the chains that redirect to *port*, themselves or by what they jump to."""
        for base in self._bases:
            if any(first <= port <= last for first, last in self._reachable(base)):
                yield f"{base} redirects to port {port}"

    def _reachable(self, base: _NatChain) -> Iterator[tuple[int, int]]:
        """Return the port ranges that rules reachable from *base* rewrite to."""
        seen, waiting = set[str](), [base.name]
        while waiting:
            chain = waiting.pop()
            if chain in seen:
                continue
            seen.add(chain)
            for raw in self._rules.get((base.family, base.table, chain), ()):
                yield from redirects(raw, base.family)
                waiting += _jumps(raw)


def _output_nat(chain: Message) -> Iterator[_NatChain]:
    fields = dict(attributes(chain.body))
    if chain.family not in _IP_FAMILIES or 4 not in fields or string(fields.get(7)) != "nat":  # noqa: PLR2004  # HOOK
        return
    hook = dict(attributes(fields[4]))
    number, priority = unpack(">Ii", hook[1] + hook[2])
    if number == _OUTPUT:
        yield _NatChain(chain.family, string(fields[1]), string(fields[3]), priority)


def _jumps(raw: bytes) -> Iterator[str]:
    for name, fields in expressions(raw):
        if name == "immediate":
            found = verdict(fields)
            if found and found[0] in (JUMP, GOTO):
                yield found[1]


def _family(number: int) -> str:
    try:
        return Proto(number).name
    except ValueError:
        return f"family {number}"
