"""Read nf_tables expressions: the words for people, and what they redirect to.

The words are nft's for whatever we make ourselves, and a count with names for anything else;
they decide nothing.  Source: linux/netfilter/nf_tables.h.
"""

import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Final

from nodeagent.errors import printable
from nodeagent.netlink import attributes, string
from nodeagent.nft.wire import Proto

Attributes = dict[int, bytes]

NAME, DATA = 1, 2
"""``NFTA_EXPR_NAME`` and ``NFTA_EXPR_DATA``."""

VERDICT = 2
"""``NFTA_DATA_VERDICT``."""

REG_PROTO_MIN = 5
"""``NFTA_NAT_REG_PROTO_MIN``; the maximum is the next."""

NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
"""``NFT_PAYLOAD_…``."""

JUMP, GOTO, RETURN = -3, -4, -5
_VERDICTS: Final = {0: "drop", 1: "accept", JUMP: "jump", GOTO: "goto", RETURN: "return"}
_META: Final = {6: "iifname", 7: "oifname", 10: "meta skuid", 11: "meta skgid", 15: "meta nfproto", 16: "meta l4proto"}
_OPERATORS: Final = {0: "", 1: "!= ", 2: "< ", 3: "<= ", 4: "> ", 5: ">= "}
_TRANSPORTS: Final = {6: "tcp", 17: "udp"}
_PORT_SPECIFIED: Final = 2  # NF_NAT_RANGE_PROTO_SPECIFIED


def expressions(raw: bytes) -> Iterator[tuple[str, Attributes]]:
    """Return (name, attributes) of each expression in the payload of ``NFTA_RULE_EXPRESSIONS``."""
    for _, element in attributes(raw):
        fields = dict(attributes(element))
        yield string(fields.get(NAME)), dict(attributes(fields.get(DATA, b"")))


def describe(raw: bytes) -> str:
    """Return the rule with these expressions in nft's words, as far as we know them."""
    found = list(expressions(raw))
    try:
        return _Words().read(found)
    except (KeyError, ValueError, IndexError):
        names = ", ".join(name for name, _ in found)
        return printable(f"a rule of {len(found)} expressions ({names})")


def verdict(fields: Attributes) -> tuple[int, str] | None:
    """Return (code, chain) of an ``immediate`` that is a verdict, else None."""
    value = dict(attributes(fields.get(2, b"")))
    if VERDICT not in value:
        return None
    parts = dict(attributes(value[VERDICT]))
    return int.from_bytes(parts[1], "big", signed=True), string(parts.get(2))


def redirects(raw: bytes, family: int) -> Iterator[tuple[int, int]]:
    """Return the ports (first, last) that a rule rewrites destinations to, whatever wrote it."""
    registers: dict[int, int] = {}
    for name, fields in expressions(raw):
        if name == "immediate" and not verdict(fields):
            registers[_number(fields[1])] = int.from_bytes(_value(fields[2])[:2], "big")
        elif name == "redir" and 1 in fields:
            first = registers.get(_number(fields[1]), -1)
            yield first, registers.get(_number(fields.get(2, fields[1])), first)
        elif name == "nat" and _number(fields.get(1, b"")) == 1 and REG_PROTO_MIN in fields:  # NFT_NAT_DNAT
            low = fields[REG_PROTO_MIN]
            first = registers.get(_number(low), -1)
            yield first, registers.get(_number(fields.get(REG_PROTO_MIN + 1, low)), first)
        elif name == "target" and string(fields.get(1)) in ("REDIRECT", "DNAT"):
            yield from _target_ports(fields, family)


def _target_ports(fields: Attributes, family: int) -> Iterator[tuple[int, int]]:
    """Read iptables-nft's targets: nf_nat_ipv4_multi_range_compat (revision 0, IPv4), else nf_nat_range."""
    info = fields.get(3, b"")
    old = family == Proto.ip and _number(fields.get(2, b"")) == 0
    flags, ports = (info[4:8], info[16:20]) if old else (info[:4], info[36:40])
    if len(ports) == 4 and int.from_bytes(flags, sys.byteorder) & _PORT_SPECIFIED:  # noqa: PLR2004  # two ports
        yield int.from_bytes(ports[:2], "big"), int.from_bytes(ports[2:], "big")


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _value(data: bytes) -> bytes:
    """Return the bytes of an ``NFTA_DATA_VALUE``."""
    return dict(attributes(data))[1]


class _Words:
    """Follows register 1 from load to comparison, as our rules use it; KeyError for anything else."""

    def __init__(self) -> None:
        self._words: list[str] = []
        self._selector = ""
        self._loaded = b""  # what an immediate put into the register
        self._mask: bytes | None = None
        self._nfproto = self._l4proto = 0

    def read(self, found: list[tuple[str, Attributes]]) -> str:
        """Return the words for *found*."""
        for name, fields in found:
            _READERS[name](self, fields)
        return " ".join(self._words)

    def meta(self, fields: Attributes) -> None:
        self._load(_META[_number(fields[2])])

    def ct(self, fields: Attributes) -> None:
        key = _number(fields[2])
        if 4 in fields:  # noqa: PLR2004  # NFTA_CT_SREG: it sets
            self._words.append({17: "ct zone set "}[key] + str(int.from_bytes(self._loaded, sys.byteorder)))
        else:
            self._load({0: "ct state"}[key])

    def payload(self, fields: Attributes) -> None:
        base, offset, length = (_number(fields[i]) for i in (2, 3, 4))
        if base == NETWORK_HEADER:
            family, name, bits = {16: (Proto.ip, "ip", 4), 24: (Proto.ip6, "ip6", 16)}[offset]
            self._require(self._nfproto == family and length == bits, "meta nfproto")
            self._load(f"{name} daddr")
        else:
            self._require(base == TRANSPORT_HEADER and self._l4proto in _TRANSPORTS, "meta l4proto")
            field = {(0, 2): "sport", (2, 2): "dport", (13, 1): "flags"}[offset, length]
            self._load(f"{_TRANSPORTS[self._l4proto]} {field}")

    def bitwise(self, fields: Attributes) -> None:
        if any(_value(fields[5])):
            raise KeyError("xor")
        self._mask = _value(fields[4])

    def immediate(self, fields: Attributes) -> None:
        found = verdict(fields)
        if found:
            code, chain = found
            self._words.append(f"{_VERDICTS[code]} {printable(chain)}".strip())
        else:
            self._loaded = _value(fields[2])

    def redir(self, fields: Attributes) -> None:
        self._words.append("redirect" + (f" to :{_number(self._loaded)}" if 1 in fields else ""))

    def lookup(self, fields: Attributes) -> None:
        inverted = "!= " if _number(fields.get(5, b"")) else ""
        self._words.append(f"{self._selector} {inverted}@{printable(string(fields[1]))}")

    def cmp(self, fields: Attributes) -> None:
        operator, value = _number(fields[2]), _value(fields[3])
        reader = _VALUES.get(self._selector, _VALUES.get(self._selector.rpartition(" ")[2]))
        if reader is None:
            raise KeyError(self._selector)
        if operator == 3 and self._words and self._words[-1].startswith(f"{self._selector} >= "):  # noqa: PLR2004  # LTE
            self._words[-1] = self._words[-1].replace(">= ", "") + f"-{reader(self, value, operator)}"
        else:
            sign = "" if self._selector == "ct state" else _OPERATORS[operator]
            self._words.append(f"{self._selector} {sign}{reader(self, value, operator)}")

    def counter(self, _: Attributes) -> None:
        self._words.append("counter")

    def _load(self, selector: str) -> None:
        self._selector, self._mask = selector, None

    def _require(self, holds: bool, dependency: str) -> None:  # noqa: FBT001  # one of two names would be noise
        """Leave out what nft calls a dependency, once something relies on it."""
        if not holds:
            raise KeyError(dependency)
        self._words = [word for word in self._words if not word.startswith(f"{dependency} ")]

    # What a comparison's bytes mean, by selector.

    def nfproto(self, value: bytes, operator: int) -> str:
        if operator == 0:
            self._nfproto = value[0]
        return {Proto.ip: "ipv4", Proto.ip6: "ipv6"}[Proto(value[0])]

    def l4proto(self, value: bytes, operator: int) -> str:
        if operator == 0:
            self._l4proto = value[0]
        return _TRANSPORTS.get(value[0], str(value[0]))

    def interface(self, value: bytes, _: int) -> str:
        return f'"{printable(string(value))}"'

    def owner(self, value: bytes, _: int) -> str:
        return str(int.from_bytes(value, sys.byteorder))

    def port(self, value: bytes, _: int) -> str:
        return str(_number(value))

    def address(self, value: bytes, _: int) -> str:
        bits = 8 * len(value) if self._mask is None else _number(self._mask).bit_count()
        return f"{ip_address(value)}" + (f"/{bits}" if bits < 8 * len(value) else "")

    def flags(self, value: bytes, _: int) -> str:
        return {(b"\x17", b"\x02"): "syn / fin,syn,rst,ack"}[self._mask or b"", value]

    def state(self, value: bytes, operator: int) -> str:
        mask = int.from_bytes(self._mask or b"", sys.byteorder)
        if (mask, operator) != (1, 1) or any(value):
            raise KeyError(mask)
        return "invalid"


_READERS: Final[dict[str, Callable[[_Words, Attributes], None]]] = {
    "meta": _Words.meta,
    "ct": _Words.ct,
    "payload": _Words.payload,
    "bitwise": _Words.bitwise,
    "immediate": _Words.immediate,
    "redir": _Words.redir,
    "lookup": _Words.lookup,
    "cmp": _Words.cmp,
    "counter": _Words.counter,
}

_VALUES: Final[dict[str, Callable[[_Words, bytes, int], str]]] = {
    "meta nfproto": _Words.nfproto,
    "meta l4proto": _Words.l4proto,
    "iifname": _Words.interface,
    "oifname": _Words.interface,
    "meta skuid": _Words.owner,
    "meta skgid": _Words.owner,
    "sport": _Words.port,
    "dport": _Words.port,
    "daddr": _Words.address,
    "flags": _Words.flags,
    "ct state": _Words.state,
}
