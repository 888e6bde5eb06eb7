"""Read back what stands in our table, in the form that compares equal wherever it stands.

Left out is what differs between two netns that hold the same rules: handles, positions, use
counts, the values of counters, and the letter that ends our sets' names.  Comments are left
out as well, for they touch no packet; the rule set's ID, which they carry, stands beside the
attributes of the chain ``intercept`` instead, so that a new ID alone is one difference.

Refuses to mix two moments: a commit between the first and the last dump starts the reading anew.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from struct import pack, unpack
from typing import Final

from nodeagent.compile.nft import CHAINS, COMMENT, TABLE, declaration, interval_text
from nodeagent.errors import printable
from nodeagent.model import BackendName, Hook, KernelRule, KernelState
from nodeagent.netlink import attribute, attributes, string
from nodeagent.nft.cache import cached_by_bytes
from nodeagent.nft.expressions import describe, expressions
from nodeagent.nft.wire import Kind, Message, NetfilterSocket, Proto, text_attribute

PREFIX: Final = f"inet/{TABLE}/"
"""What the names of our chains and sets begin with in a :class:`KernelState`."""

INTERCEPT: Final = CHAINS[Hook.REDIRECT].name
DORMANT: Final = 1  # NFT_TABLE_F_DORMANT
ANONYMOUS: Final = 1  # NFT_SET_ANONYMOUS
_INTERVAL: Final = 4  # NFT_SET_INTERVAL
_INTERVAL_END: Final = 1  # NFT_SET_ELEM_INTERVAL_END

_OWN: Final = text_attribute(1, TABLE)
_VOLATILE: Final = re.compile(rb"\0(?:lookup|counter|quota|last|limit|connlimit)\0")
_LETTERED: Final = re.compile(r"(.+)_([a-z])")
_RULESET_ID: Final = re.compile(rf"{COMMENT}:([0-9a-f]{{16}}):")
_HOOKS: Final = {0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting"}
_KEY_TYPES: Final = {7: "ipv4_addr", 8: "ipv6_addr", 13: "inet_service"}


def is_own(found: Message) -> bool:
    """Say whether a table, chain, rule or set is ours: the first attribute of each names its table."""
    return found.family == Proto.inet and found.body.startswith(_OWN)


def dump_rules_and_sets(netfilter: NetfilterSocket, most: int | None = None) -> Iterator[Message]:
    """Return the rules, sets and elements of our table: of rules, and of all elements, not more than *most* bytes.

    Raises:
        TooMuchError: it is more; the socket is of no further use.
        NetlinkError: ENOENT where there is no such table, or no longer.
    """
    yield from netfilter.dump(Kind.GETRULE, Proto.inet, _OWN, most)
    for one in netfilter.dump(Kind.GETSET, Proto.inet, _OWN):
        fields = dict(attributes(one.body))
        if not int.from_bytes(fields.get(3, b""), "big") & ANONYMOUS:  # those are part of a rule
            yield one
            elements = netfilter.dump(Kind.GETSETELEM, Proto.inet, _OWN + attribute(2, fields[2]), most)
            most = most and max(1, most - sum(len(m.body) for m in elements))
            yield from elements


def too_large(reason: str) -> KernelState:
    """Return the state of a table of our name that holds more than any rule set of ours, which is all that it says."""
    return KernelState(
        BackendName.NFT, {PREFIX + "*": (KernelRule(b"", f"a table larger than any of ours ({reason})"),)}
    )


def kernel_state(own: Sequence[Message]) -> tuple[KernelState | None, str | None]:
    """Return our state, and the rule set's ID, from all that was dumped of our table; None where we have none."""
    table = next(_of(own, Kind.NEWTABLE), None)
    if table is None:
        return None, None
    dormant = int.from_bytes(table.get(2, b""), "big") & DORMANT
    rules = [(string(r[2]), r.get(4, b""), r.get(7, b"")) for r in _of(own, Kind.NEWRULE)]
    letter = _generation(raw for _, raw, _ in rules if _steady(raw) is None)
    ids = sorted({found for chain, _, comment in rules if chain == INTERCEPT and (found := _ruleset_id(comment))})
    chains: dict[str, list[KernelRule]] = {}
    for fields in _of(own, Kind.NEWCHAIN):
        name = string(fields[3])
        chains[PREFIX + name] = []
        chains[f"{PREFIX}{name}#"] = [_attributes(chain_image(fields), bool(dormant))]
        if name == INTERCEPT:
            chains[f"{PREFIX}{name}#"] += [KernelRule(i.encode(), f"rule set {i}") for i in ids]
    for chain, raw, _ in rules:
        chains[PREFIX + chain].append(_steady(raw) or _changed(raw, letter))
    state: dict[str, tuple[KernelRule, ...]] = {name: tuple(found) for name, found in chains.items()}
    state.update(_sets(own, letter))
    return KernelState(BackendName.NFT, state), ids[0] if len(ids) == 1 else None


def chain_attributes(state: KernelState) -> dict[str, bytes]:
    """Return what :func:`chain_image` said of each of our chains, by name."""
    return {
        name.removeprefix(PREFIX)[:-1]: rules[0].image
        for name, rules in state.chains.items()
        if name.endswith("#") and name[:-1] in state.chains
    }


def chain_image(fields: dict[int, bytes]) -> bytes:
    """Return what a chain's attributes make of a packet: type, hook, priority, policy; empty for no hook."""
    if 4 not in fields:  # noqa: PLR2004  # NFTA_CHAIN_HOOK
        return b""
    hook = dict(attributes(fields[4]))
    return pack(">4s4s4s", hook[1], hook[2], fields.get(5, b"")) + fields.get(7, b"").rstrip(b"\0")


def _of(messages: Sequence[Message], kind: Kind) -> Iterator[dict[int, bytes]]:
    return (dict(attributes(m.body)) for m in messages if m.kind == kind)


def _attributes(image: bytes, dormant: bool) -> KernelRule:  # noqa: FBT001  # a flag of the table, as read
    text = "a chain without a hook" if not image else _declaration(image)
    return KernelRule(image + b"\0dormant" * dormant, text + " table dormant;" * dormant)


def _declaration(image: bytes) -> str:
    hook, priority, policy = unpack(">IiI", image[:12])
    name = _HOOKS.get(hook, f"number {hook}")
    return declaration(printable(string(image[12:])), name, priority, "accept" if policy else "drop")


@cached_by_bytes(1 << 20)
def _steady(raw: bytes) -> KernelRule | None:
    """Return the rule with these expressions; None where some of them differ from netns to netns."""
    return None if _VOLATILE.search(raw) else KernelRule(raw, describe(raw))


@lru_cache(maxsize=2048)  # of at most 256 bytes each: NFT_USERDATA_MAXLEN
def _ruleset_id(comment: bytes) -> str | None:
    """Return the rule set's ID from a rule's user data (type, length, text)."""
    match = _RULESET_ID.match(string(comment[2:]))
    return match[1] if match else None


def _generation(rules: Iterable[bytes]) -> str | None:
    """Return the letter of the sets that are in use, if the rules agree on one."""
    letters = set()
    for raw in rules:
        for name, fields in expressions(raw):
            if name == "lookup":
                match = _LETTERED.fullmatch(string(fields[1]))
                letters.add(match and match[2])
    return letters.pop() if len(letters) == 1 else None


def _plain_name(name: str, letter: str | None) -> str:
    """Return a set's name without its letter, if that is the one in use: another set is a leftover."""
    return name[:-2] if letter and name.endswith(f"_{letter}") else name


@cached_by_bytes(1 << 20)
def _changed(raw: bytes, letter: str | None) -> KernelRule:
    """Return the rule with these expressions without set letters, and without the values of counters and the like."""
    image = b"".join(_normal_expression(name, fields, letter) for name, fields in expressions(raw))
    return KernelRule(image, describe(image))


def _normal_expression(name: str, fields: dict[int, bytes], letter: str | None) -> bytes:
    if name in ("counter", "quota", "last", "limit", "connlimit"):
        fields = {}
    elif name == "lookup":
        fields = {**fields, 1: _plain_name(string(fields[1]), letter).encode() + b"\0"}
    data = b"".join(attribute(kind, value) for kind, value in fields.items())
    return attribute(1, text_attribute(1, name) + attribute(2, data))


def _sets(own: Sequence[Message], letter: str | None) -> Iterator[tuple[str, tuple[KernelRule, ...]]]:
    """Return our sets as chains: their elements, in order, and their attributes."""
    elements: dict[bytes, list[bytes]] = {}
    for fields in _of(own, Kind.NEWSETELEM):
        elements.setdefault(fields[2], []).append(fields.get(3, b""))
    for fields in _of(own, Kind.NEWSET):
        key_type = int.from_bytes(fields.get(4, b""), "big")
        kind = _KEY_TYPES.get(key_type, f"type {key_type}")
        flags = int.from_bytes(fields.get(3, b""), "big")
        name = PREFIX + _plain_name(string(fields[2]), letter)
        image = pack(">II", key_type, flags) + fields.get(5, b"")
        yield f"{name}#", (KernelRule(image, f"type {kind}; flags {flags:#x};"),)
        yield name, _elements(kind, bool(flags & _INTERVAL), b"".join(elements.get(fields[2], ())))


@cached_by_bytes(8 << 20)  # 100,000 ranges take five million bytes
def _elements(kind: str, is_interval: bool, raw: bytes) -> tuple[KernelRule, ...]:  # noqa: FBT001  # a flag, as read
    """Return a set's elements; cached, because a mesh's list is the same in every pod."""
    bounds = []
    for _, element in attributes(raw):
        fields = dict(attributes(element))
        key = dict(attributes(fields[1]))[1]
        is_start = not int.from_bytes(fields.get(3, b""), "big") & _INTERVAL_END
        # Key, flags and nft's own notes are ours; a timeout or a map's value is somebody's.
        bounds.append((key, is_start, b"" if {1, 3, 6}.issuperset(fields) else element))
    bounds.sort()
    if is_interval and kind in _KEY_TYPES.values():
        return tuple(_intervals(kind, bounds))
    return tuple(KernelRule(key + extra, f"element {key.hex()}") for key, _, extra in bounds)


def _intervals(kind: str, bounds: list[tuple[bytes, bool, bytes]]) -> Iterator[KernelRule]:
    """Join starts and ends, which the kernel reports apart; what has no end goes on to the last address."""
    for index, (key, is_start, extra) in enumerate(bounds):
        if is_start:
            first, last = int.from_bytes(key, "big"), (1 << 8 * len(key)) - 1
            if index + 1 < len(bounds):
                last = int.from_bytes(bounds[index + 1][0], "big") - 1
            yield KernelRule(key + last.to_bytes(len(key), "big") + extra, interval_text(kind, first, last))
