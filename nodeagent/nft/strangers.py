"""What other people's tables mean for ours: redirects of other proxies, and rules that run first.

Reads every family and changes nothing.  iptables-nft's rules are nft rules like any other.

A pod may hold 100,000 rules.  So they are searched as the kernel sends them, and not kept:
parsed is only what rewrites destinations (``redir``, ``nat``, a ``target`` of iptables;
``tproxy`` cannot be at the output hook) and may do so to the port in question.  What takes the
time then is the kernel, which goes through a chain from its start for each 32 KiB.  Where it is
still too much, it says so, as something seen: unknown is never none.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import unpack, unpack_from
from typing import Final

from nodeagent.compile.foreign import other_proxy
from nodeagent.compile.nft import CHAINS
from nodeagent.errors import printable
from nodeagent.model import Hook
from nodeagent.netlink import Datagram, attribute, attributes, string
from nodeagent.nft.expressions import GOTO, JUMP, redirects
from nodeagent.nft.state import is_own
from nodeagent.nft.wire import Kind, Message, NetfilterSocket, Proto, generation_at, number_attribute

RULES: Final = 1 << 17
"""Rules of one table that are looked at, at most: two seconds, nearly all of which are the kernel's."""

PARSED: Final = 5_000
"""Rules of one table that are parsed at most: a quarter of a second."""

_OUTPUT: Final = 3  # NF_INET_LOCAL_OUT
_IP_FAMILIES: Final = {Proto.ip, Proto.ip6, Proto.inet}
_IPTABLES_FILTERS: Final = {"filter", "security"}
_HEADER: Final = 4  # nfgenmsg

_REWRITES: Final = re.compile(rb"(?:redir|nat|target)\0")
_IMMEDIATE: Final = b"immediate\0\0\0"
_PORT: Final = attribute(1, b"..")[:4]  # heads an NFTA_DATA_VALUE of two bytes
_LOADED: Final = re.compile(  # after its name: NFTA_EXPR_DATA, NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA, the data
    re.escape(_IMMEDIATE) + rb".{4}" + re.escape(attribute(1, b"....")[:4]) + rb".{4}.{4}(.{4})(..)", re.DOTALL
)
_CODES: Final = b"|".join(re.escape(number_attribute(1, code & 0xFFFFFFFF)) for code in (JUMP, GOTO))
_LEADS_TO: Final = re.compile(  # NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN
    rb"(?:" + _CODES + rb").." + re.escape(attribute(2, b"")[2:4]) + rb"([^\0]+)\0", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class _NatChain:
    """A stranger's chain at the output hook that may rewrite destinations; names as the kernel has them."""

    family: int
    table: bytes
    name: bytes
    priority: int

    @property
    def head(self) -> bytes:
        """What the attributes of each of its rules begin with."""
        return attribute(1, self.table) + attribute(2, self.name)

    def __str__(self) -> str:
        return f"{printable(string(self.name))} ({_table(self.family, self.table)}, nft)"


def named_proxies(tables: Sequence[Message], chains: Sequence[Message]) -> Iterator[str]:
    """Return the tables and chains that carry another proxy's name, for people.

    A name alone says what the proxy does only where it can redirect: not in a family without
    IP, nor in iptables-nft's tables for filtering.
    """
    for found in tables:
        name = string(dict(attributes(found.body))[1])
        mesh = other_proxy(name)
        if mesh and found.family in _IP_FAMILIES:
            yield f"{mesh}'s table {printable(name)} ({_family(found.family)}, nft)"
    for chain in chains:
        fields = dict(attributes(chain.body))
        table, name = string(fields[1]), string(fields[3])
        mesh = other_proxy(name)
        if mesh and not other_proxy(table) and _can_redirect(chain.family, table):
            yield f"{mesh}'s chain {printable(name)} ({_table(chain.family, fields[1])}, nft)"


def _can_redirect(family: int, table: str) -> bool:
    return family in _IP_FAMILIES and (family == Proto.inet or table not in _IPTABLES_FILTERS)


class NatRules:
    """What strangers' nat chains at the output hook do to us.

    ``ahead`` names the chains with rules in them that run before ours, or may: equal priorities
    have no order.  ``redirecting`` names those that redirect to the sidecar's port, themselves
    or by what they lead to; empty if no port was asked for.  ``generations`` are those of
    the rule set while it was read.
    """

    def __init__(self, netfilter: NetfilterSocket, chains: Sequence[Message], port: int | None) -> None:
        self.generations: set[int] = set()
        self.ahead: list[str] = []
        self.redirecting: list[str] = []
        self._netfilter = netfilter
        self._unseen: set[bytes] = set()  # tables of which not all rules were looked at
        bases = [base for chain in chains if not is_own(chain) for base in _output_nat(chain)]
        for family, table in sorted({(base.family, base.table) for base in bases}):
            self._look([base for base in bases if (base.family, base.table) == (family, table)], port)

    def _look(self, bases: Sequence[_NatChain], port: int | None) -> None:
        """Look at the rules of one table."""
        early = [base for base in bases if base.priority <= CHAINS[Hook.REDIRECT].priority]
        search = _Search(bases[0].family, port) if port is not None else None
        if not (early or search):
            return
        counts = Counter[_NatChain]()
        for data, bounds in self._rules(bases[0]):
            for base in early:
                counts[base] += sum(data.startswith(base.head, start + _HEADER) for start, _ in bounds)
            if search:
                search.add(data, bounds)
        for base in early:
            if counts[base]:
                self.ahead.append(f"{base} at priority {base.priority}, {counts[base]} rule{'s' * (counts[base] > 1)}")
        if search:
            self.redirecting += self._redirecting(bases, search)

    def _rules(self, base: _NatChain) -> Iterator[Datagram]:
        """Yield the rules of the table, as many as are looked at; on a socket of its own, to be left half read."""
        count = 0
        with self._netfilter.another() as netfilter:
            for datagram in netfilter.stream(Kind.GETRULE, base.family, attribute(1, base.table)):
                self.generations.add(generation_at(datagram.data, datagram.bounds[0][0]))
                yield datagram
                count += len(datagram.bounds)
                if count > RULES:
                    self._unseen.add(base.table)
                    return

    def _redirecting(self, bases: Sequence[_NatChain], search: "_Search") -> Iterator[str]:
        table = f"table {_table(bases[0].family, bases[0].table)}, nft"
        if search.is_full:
            yield f"more than {PARSED} rules that may redirect to port {search.port} ({table})"
        elif search.found:
            jumps = {} if {base.name for base in bases} <= search.found else self._jumps(bases[0])
            if jumps is None:
                yield f"a redirect to port {search.port} that too much may lead to ({table})"
            for base in bases if jumps is not None else ():
                if _leads(base.name, search.found, jumps or {}):
                    yield f"a redirect to port {search.port} from {base}"
        elif bases[0].table in self._unseen:
            yield f"more than {RULES} rules, too many to see whether one redirects to port {search.port} ({table})"

    def _jumps(self, base: _NatChain) -> dict[bytes, set[bytes]] | None:
        """Return where each chain of the table leads; None where that is too much to see.

        Bytes that merely look like a jump count as one: that can only name one chain too many.
        """
        jumps: dict[bytes, set[bytes]] = {}
        count = 0
        for data, bounds in self._rules(base):
            for start, end in bounds if _LEADS_TO.search(data) else ():
                for name in _LEADS_TO.findall(data, start, end):
                    jumps.setdefault(_chain(data, start), set()).add(name + b"\0")
                    count += 1
            if count > RULES:
                return None
        return None if base.table in self._unseen else jumps


class _Search:
    """Looks in the rules of one table for redirects to a port, and remembers which chains have one."""

    def __init__(self, family: int, port: int) -> None:
        self.port = port
        self.found: set[bytes] = set()
        self.is_full = False
        self._family = family
        self._port = port.to_bytes(2, "big")
        self._parsed = 0

    def add(self, data: bytes, bounds: Sequence[tuple[int, int]]) -> None:
        """Look at one datagram."""
        if self.is_full or not _REWRITES.search(data):
            return
        for start, end in bounds:
            if _REWRITES.search(data, start, end) and _chain(data, start) not in self.found:
                body = data[start + _HEADER : end]
                if self._may_redirect(body):
                    self._parse(body)

    def _may_redirect(self, body: bytes) -> bool:
        """Say no only where that is certain: every port that the rule loads is another one."""
        loaded = _LOADED.findall(body)
        if b"target\0" in body or len(loaded) != body.count(_IMMEDIATE):
            return True
        ports = [value for head, value in loaded if head == _PORT]
        return self._port in ports or (len(ports) > 1 and min(ports) < self._port < max(ports))

    def _parse(self, body: bytes) -> None:
        self._parsed += 1
        self.is_full = self._parsed > PARSED
        fields = dict(attributes(body))
        if any(first <= self.port <= last for first, last in redirects(fields.get(4, b""), self._family)):
            self.found.add(fields[2])


def _leads(base: bytes, found: set[bytes], jumps: dict[bytes, set[bytes]]) -> bool:
    """Say whether one of the chains *found* can be reached from *base*."""
    seen, waiting = {base}, [base]
    while waiting:
        new = jumps.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return not seen.isdisjoint(found)


def _chain(data: bytes, start: int) -> bytes:
    """Return the name of the chain that the rule is in: its second attribute."""
    at = start + _HEADER
    at += unpack_from("=H", data, at)[0] + 3 & ~3
    return data[at + 4 : at + unpack_from("=H", data, at)[0]]


def _output_nat(chain: Message) -> Iterator[_NatChain]:
    fields = dict(attributes(chain.body))
    if chain.family not in _IP_FAMILIES or 4 not in fields or string(fields.get(7)) != "nat":  # noqa: PLR2004  # HOOK
        return
    hook = dict(attributes(fields[4]))
    number, priority = unpack(">Ii", hook[1] + hook[2])
    if number == _OUTPUT:
        yield _NatChain(chain.family, fields[1], fields[3], priority)


def _table(family: int, name: bytes) -> str:
    return f"{_family(family)} {printable(string(name))}"


def _family(number: int) -> str:
    try:
        return Proto(number).name
    except ValueError:
        return f"family {number}"
