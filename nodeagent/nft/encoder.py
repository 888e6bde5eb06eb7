"""Encode one rule set: the one-shot child behind :meth:`NftBackend.encode`.

``python -m nodeagent.nft.encoder``: canonical JSON of a rule set on stdin; on stdout the
payload's length (4 bytes, this machine's order), the payload, and the netlink messages that a
kernel reported after the payload had been written into an empty netns of the child's own.
What goes wrong is one line on stderr, and exit code 1; stdout is empty then.

A child, because pyroute2 costs 20 MB and 200 ms to import, and because what it enters and what
it may break is gone with it.  pyroute2's message classes do the encoding; by hand, only where
version 0.9.7 cannot (see :func:`_elements`, :func:`_integer`).
"""

import socket
import sys
from collections.abc import Iterator
from struct import pack
from typing import Any, Final

from pyroute2.netlink.nfnetlink.nftsocket import (
    nft_chain_msg,
    nft_rule_msg,
    nft_set_elem_list_msg,
    nft_set_msg,
    nft_table_msg,
)

from nodeagent.compile.canonical import from_json
from nodeagent.compile.nft import (
    TABLE,
    CtInvalid,
    Destination,
    Interval,
    Meta,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    Port,
    RedirectTo,
    Return,
    SetZone,
    Statement,
    Syn,
    lower,
)
from nodeagent.errors import InputError
from nodeagent.model import Family, Network, PortRange, Protocol, RuleSet
from nodeagent.netlink import NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkError, attribute
from nodeagent.netns.kernel import unshare_netns
from nodeagent.nft.replay import Encoded, Lettered, look, replay
from nodeagent.nft.state import dump_rules_and_sets, is_own
from nodeagent.nft.wire import SUBSYSTEM, Kind, Message, NetfilterSocket, Proto, message, number_attribute

LIST_ELEM: Final = 1  # NFTA_LIST_ELEM
SPLIT: Final = 60_000
"""Bytes of elements in one message: an attribute's length is 16 bits."""

_HOOKS: Final = {"prerouting": 0, "output": 3}
_SET_TYPES: Final = {"ipv4_addr": (7, 4), "ipv6_addr": (8, 16), "inet_service": (13, 2)}  # type number, bytes
_META: Final = {"iifname": 6, "oifname": 7, "skuid": 10, "skgid": 11, "nfproto": 15, "l4proto": 16}
_NFPROTO: Final = {"ipv4": 2, "ipv6": 10}
_L4PROTO: Final = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_DESTINATION: Final = {Family.V4: (16, 4), Family.V6: (24, 16)}  # offset and bytes in the header
_EQUAL, _NOT_EQUAL, _AT_MOST, _AT_LEAST = 0, 1, 3, 5
_SYN_OF_FLAGS: Final = (b"\x02", b"\x17")  # SYN, among FIN, SYN, RST and ACK
_CT_STATE, _CT_ZONE, _CT_INVALID = 0, 17, 1
_RETURN: Final = -5

Attrs = list[tuple[str, Any]]


class _ElementsMessage(nft_set_elem_list_msg):  # type: ignore[misc]  # pyroute2 has no types
    """Takes encoded elements: pyroute2 takes 670 ms for 10,000 of them, and encodes the flags by name as 0."""

    nla_map = (
        ("NFTA_SET_ELEM_LIST_UNSPEC", "none"),
        ("NFTA_SET_ELEM_LIST_TABLE", "asciiz"),
        ("NFTA_SET_ELEM_LIST_SET", "asciiz"),
        ("NFTA_SET_ELEM_LIST_ELEMENTS", "cdata"),
    )


def encode(ruleset: RuleSet) -> Encoded:
    """Return the netlink messages of *ruleset*.

    It is encoded under two letters: where the bytes differ stands the letter.  Searching for a
    name would find an interface of that name as well.
    """
    table, other = lower(ruleset, "a"), lower(ruleset, "b")
    return Encoded(
        table=_encode(nft_table_msg, Kind.NEWTABLE, [("NFTA_TABLE_NAME", TABLE)], NLM_F_CREATE),
        set_names=tuple(s.name[:-2] for s in table.sets),
        sets=_compare(_sets(table), _sets(other)),
        chains=tuple((chain.name, _chain(chain)) for chain in table.chains),
        rules=_compare(_rules(table), _rules(other)),
    )


def _compare(first: bytes, second: bytes) -> Lettered:
    if first == second:
        return Lettered(first)
    return Lettered(first, tuple(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b))


def _encode(cls: type[Any], kind: Kind, attrs: Attrs, flags: int, sequence: int = 0) -> bytes:
    encoded = cls()
    encoded["attrs"] = attrs
    encoded["nfgen_family"] = int(Proto.inet)
    encoded["header"]["type"] = SUBSYSTEM << 8 | kind
    encoded["header"]["flags"] = NLM_F_REQUEST | flags
    encoded["header"]["sequence_number"] = sequence
    encoded.encode()
    return bytes(encoded.data)


# -- chains and sets --------------------------------------------------------------------------------------------------


def _chain(chain: NftChain) -> bytes:
    hook = [("NFTA_HOOK_HOOKNUM", _HOOKS[chain.hook]), ("NFTA_HOOK_PRIORITY", chain.priority)]
    attrs = [
        ("NFTA_CHAIN_TABLE", TABLE),
        ("NFTA_CHAIN_NAME", chain.name),
        ("NFTA_CHAIN_HOOK", {"attrs": hook}),
        ("NFTA_CHAIN_TYPE", chain.type),
        ("NFTA_CHAIN_POLICY", 1),  # NF_ACCEPT
    ]
    return _encode(nft_chain_msg, Kind.NEWCHAIN, attrs, NLM_F_CREATE)


def _sets(table: NftTable) -> bytes:
    messages = [part for number, one in enumerate(table.sets, 1) for part in _set(one, number)]
    if messages:  # the last one says that all has been done
        messages[-1] = _with_flag(messages[-1], NLM_F_ACK)
    return b"".join(messages)


def _set(one: NftSet, number: int) -> Iterator[bytes]:
    type_number, size = _SET_TYPES[one.type]
    attrs: Attrs = [
        ("NFTA_SET_TABLE", TABLE),
        ("NFTA_SET_NAME", one.name),
        ("NFTA_SET_FLAGS", {"NFT_SET_INTERVAL"}),
        ("NFTA_SET_KEY_TYPE", type_number),
        ("NFTA_SET_KEY_LEN", size),
        ("NFTA_SET_ID", number),
        # For nft alone, which prints big-endian keys by it; nft calls big endian 2.
        ("NFTA_SET_USERDATA", [("NFTNL_UDATA_SET_KEYBYTEORDER", pack("=I", 2))]),
    ]
    yield _encode(nft_set_msg, Kind.NEWSET, attrs, NLM_F_CREATE)
    for elements in _split(_elements(one.intervals, size)):
        attrs = [
            ("NFTA_SET_ELEM_LIST_TABLE", TABLE),
            ("NFTA_SET_ELEM_LIST_SET", one.name),
            ("NFTA_SET_ELEM_LIST_ELEMENTS", elements),
        ]
        yield _encode(_ElementsMessage, Kind.NEWSETELEM, attrs, NLM_F_CREATE)


def _elements(intervals: tuple[Interval, ...], size: int) -> Iterator[bytes]:
    """Return the starts of intervals and, as elements with a flag, their ends, which are exclusive.

    An interval that goes on to the last key has no end; a set whose first interval does not
    start at zero begins, as nft's do, with an end at zero.
    """
    end = number_attribute(3, 1)  # NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END
    if intervals and intervals[0][0]:
        yield _element(0, size, end)
    for first, last in intervals:
        yield _element(first, size, b"")
        if last + 1 < 1 << 8 * size:
            yield _element(last + 1, size, end)


def _element(key: int, size: int, flags: bytes) -> bytes:
    value = attribute(1, attribute(1, key.to_bytes(size, "big")))  # NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE
    return attribute(LIST_ELEM, value + flags)


def _split(elements: Iterator[bytes]) -> Iterator[bytes]:
    part = bytearray()
    for element in elements:
        if len(part) + len(element) > SPLIT:
            yield bytes(part)
            part.clear()
        part += element
    if part:
        yield bytes(part)


def _with_flag(encoded: bytes, flag: int) -> bytes:
    flags = int.from_bytes(encoded[6:8], sys.byteorder) | flag
    return encoded[:6] + flags.to_bytes(2, sys.byteorder) + encoded[8:]


# -- rules ------------------------------------------------------------------------------------------------------------


def _rules(table: NftTable) -> bytes:
    """Return the rules; their sequence numbers count from 1, for the kernel's errors."""
    messages = [_rule(rule, number) for number, rule in enumerate(table.rules, 1)]
    return b"".join([*messages[:-1], _with_flag(messages[-1], NLM_F_ACK)])


def _rule(rule: NftRule, number: int) -> bytes:
    attrs = [
        ("NFTA_RULE_TABLE", TABLE),
        ("NFTA_RULE_CHAIN", rule.chain),
        ("NFTA_RULE_EXPRESSIONS", list(_expressions(rule.statements))),
        ("NFTA_RULE_USERDATA", {"value": rule.comment}),
    ]
    return _encode(nft_rule_msg, Kind.NEWRULE, attrs, NLM_F_CREATE | NLM_F_APPEND, number)


Expression = dict[str, Attrs]


def _expressions(statements: tuple[Statement, ...]) -> Iterator[Expression]:
    """Return the expressions of a rule; a header is looked into once the protocol is known to be the right one."""
    known = set[Meta]()
    for statement in statements:
        for needed in _dependencies(statement):
            if needed not in known:
                known.add(needed)
                yield from _meta(needed)
        yield from _statement(statement)


def _dependencies(statement: Statement) -> tuple[Meta, ...]:
    match statement:
        case Destination(family):
            return (Meta("nfproto", f"ipv{family.value}"),)
        case Port(protocol):
            return (Meta("l4proto", protocol.value),)
        case Syn():
            return (Meta("l4proto", Protocol.TCP.value),)
    return ()


def _statement(statement: Statement) -> Iterator[Expression]:
    match statement:
        case Meta():
            yield from _meta(statement)
        case Destination(family, where):
            yield from _destination(family, where)
        case Port(_, side, where):
            yield _payload(_TRANSPORT_HEADER, {"sport": 0, "dport": 2}[side], 2)
            yield from _port(where)
        case Syn():
            syn, flags = _SYN_OF_FLAGS
            yield _payload(_TRANSPORT_HEADER, 13, 1)
            yield _masked(flags)
            yield _cmp(syn)
        case CtInvalid():
            yield _expression("ct", key=_CT_STATE, dreg=1)
            yield _masked(pack("=I", _CT_INVALID))
            yield _cmp(bytes(4), _NOT_EQUAL)
        case _:
            yield from _action(statement)


def _action(statement: Statement) -> Iterator[Expression]:
    match statement:
        case Return():
            code: Attrs = [("NFTA_VERDICT_CODE", _RETURN)]
            yield _expression("immediate", dreg=0, data={"attrs": [("NFTA_DATA_VERDICT", {"attrs": code})]})
        case RedirectTo(port):
            yield _expression("immediate", dreg=1, data=_data(pack(">H", port)))
            yield _expression("redir", reg_proto_min=1, flags={"NF_NAT_RANGE_PROTO_SPECIFIED"})
        case SetZone(number):
            yield _expression("immediate", dreg=1, data=_data(pack("=H", number)))
            yield _expression("ct", key=_CT_ZONE, sreg=1)


def _meta(meta: Meta) -> Iterator[Expression]:
    yield _expression("meta", key=_META[meta.key], dreg=1)
    yield _cmp(_meta_value(meta), _NOT_EQUAL if meta.negated else _EQUAL)


def _meta_value(meta: Meta) -> bytes:
    """Return what the kernel loads: a byte of protocol, 16 of a name, or a number in this machine's order."""
    match meta.key:
        case "nfproto":
            return bytes([_NFPROTO[str(meta.value)]])
        case "l4proto":
            return bytes([_L4PROTO[str(meta.value)]])
        case "skuid" | "skgid":
            return pack("=I", meta.value)
    return str(meta.value).encode().ljust(16, b"\0")


def _destination(family: Family, where: Network | str) -> Iterator[Expression]:
    yield _payload(_NETWORK_HEADER, *_DESTINATION[family])
    if isinstance(where, str):
        yield _expression("lookup", set=where, sreg=1)
        return
    if where.prefixlen < where.max_prefixlen:
        yield _masked(where.netmask.packed)
    yield _cmp(where.network_address.packed)


def _port(where: PortRange | str) -> Iterator[Expression]:
    if isinstance(where, str):
        yield _expression("lookup", set=where, sreg=1)
    elif where.first == where.last:
        yield _cmp(pack(">H", where.first))
    else:
        yield _cmp(pack(">H", where.first), _AT_LEAST)
        yield _cmp(pack(">H", where.last), _AT_MOST)


def _payload(base: int, offset: int, length: int) -> Expression:
    return _expression("payload", dreg=1, base=base, offset=offset, len=length)


def _masked(mask: bytes) -> Expression:
    return _expression("bitwise", sreg=1, dreg=1, len=len(mask), mask=_data(mask), xor=_data(bytes(len(mask))))


def _cmp(value: bytes, operator: int = _EQUAL) -> Expression:
    return _expression("cmp", sreg=1, op=operator, data=_data(value))


def _data(value: bytes) -> Expression:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


def _expression(name: str, **fields: object) -> Expression:
    attrs = [(f"NFTA_{name.upper()}_{key.upper()}", value) for key, value in fields.items()]
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": attrs})]}


# -- the child --------------------------------------------------------------------------------------------------------


def main() -> int:
    """Do what the module says; return the exit code."""
    try:
        ruleset = from_json(sys.stdin.buffer.read())
        encoded = encode(ruleset)
        unshare_netns()
        reported = _try_out(ruleset, encoded)
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201  # the parent reads it
        return 1
    payload = encoded.pack()
    stream = b"".join(message(Kind(m.kind), m.body, family=m.family) for m in reported)
    sys.stdout.buffer.write(pack("=I", len(payload)) + payload + stream)
    return 0


def _try_out(ruleset: RuleSet, encoded: Encoded) -> list[Message]:
    """Write the rules into this empty netns; return what the kernel then reports."""
    with NetfilterSocket() as netfilter:
        try:
            replay(netfilter, encoded, {}, look(netfilter))
        except NetlinkError as error:
            rules = lower(ruleset).rules
            if error.kind == SUBSYSTEM << 8 | Kind.NEWRULE and 0 < error.sequence <= len(rules):
                raise OSError(error.errno, f"rule {error.sequence} ({rules[error.sequence - 1]}): {error}") from None
            raise
        own = [m for kind in (Kind.GETTABLE, Kind.GETCHAIN) for m in netfilter.dump(kind, Proto.inet) if is_own(m)]
        return [*own, *dump_rules_and_sets(netfilter)]


if __name__ == "__main__":
    sys.exit(main())
