"""Make an encoded rule set fit what stands, and commit it.

Why two phases.  The contents of an interval set become visible a moment after the rules of the
same transaction that use it (8 microseconds; a millisecond at 10,000 ranges; measured: thousands of
connections misjudged).  So the first transaction makes the sets under names that nobody uses
yet, and the second, atomically, empties all our chains, fills them with rules on the new sets
and deletes the old ones.  A kill in between leaves the old rules, and sets that the next
replay removes.  The table itself is never deleted and made anew: both would be hooked, or none.

What somebody else did to our table is undone in the second transaction: it empties *all* of
the table's chains, deletes what we do not want, and makes again what hangs elsewhere.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from errno import EEXIST, ENOENT, EPERM
from string import ascii_lowercase
from struct import pack, unpack_from
from typing import Final, Self

from nodeagent.compile.nft import TABLE
from nodeagent.errors import Refusal, RefusedError
from nodeagent.netlink import NLM_F_ACK, NetlinkError, attributes, string
from nodeagent.nft.state import ANONYMOUS, DORMANT, chain_image, is_own
from nodeagent.nft.wire import Kind, NetfilterSocket, Proto, batch, message, number_attribute, text_attribute

_TABLE: Final = text_attribute(1, TABLE)
_GENERATIONS: Final = 1 << 32
_OWNED: Final = 2  # NFT_TABLE_F_OWNER
_OWNER: Final = 7  # NFTA_TABLE_OWNER


@dataclass(frozen=True, slots=True)
class Lettered:
    """Encoded messages, and where in them stands the letter that ends a set's name."""

    messages: bytes
    offsets: tuple[int, ...] = ()

    def under(self, letter: str) -> bytes:
        """Return the messages with *letter* in those places.

        >>> Lettered(b"ranges_a", (7,)).under("c")
        b'ranges_c'
        """
        changed = bytearray(self.messages)
        for offset in self.offsets:
            changed[offset] = ord(letter)
        return bytes(changed)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A rule set as netlink messages: what a program's payload holds.

    *set_names* are without their letter.  The last message of *sets* and of *rules* asks for
    an acknowledgement.
    """

    table: bytes
    set_names: tuple[str, ...]
    sets: Lettered
    chains: tuple[tuple[str, bytes], ...]
    rules: Lettered

    def pack(self) -> bytes:
        """Return all of it as bytes; :meth:`unpack` is the inverse."""
        parts = [self.table, self.sets.messages, self.rules.messages, *(chain for _, chain in self.chains)]
        head = json.dumps(
            {
                "set_names": self.set_names,
                "chains": [name for name, _ in self.chains],
                "sets": self.sets.offsets,
                "rules": self.rules.offsets,
                "lengths": [len(part) for part in parts],
            }
        ).encode()
        return pack("=I", len(head)) + head + b"".join(parts)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Return what :meth:`pack` packed."""
        (start,) = unpack_from("=I", payload)
        start += 4
        head = json.loads(payload[4:start])
        parts = []
        for length in head["lengths"]:
            parts.append(payload[start : start + length])
            start += length
        table, sets, rules, *chains = parts
        return cls(
            table,
            tuple(head["set_names"]),
            Lettered(sets, tuple(head["sets"])),
            tuple(zip(head["chains"], chains, strict=True)),
            Lettered(rules, tuple(head["rules"])),
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands in our table, by name, at *generation* of the netns' rule set.

    Chains map to their attributes as :func:`chain_image` has them; *sets* are those that can
    be deleted.
    """

    generation: int
    exists: bool = False
    dormant: bool = False
    chains: Mapping[str, bytes] | None = None
    sets: tuple[str, ...] = ()


def look(netfilter: NetfilterSocket) -> Standing:
    """Return what stands now; whether that is still so, the commit will find out by the generation.

    Raises:
        RefusedError: the table of our name is another process's own.
    """
    generation = netfilter.generation()
    try:
        table = _own_table(netfilter)
        chains = [dict(attributes(m.body)) for m in netfilter.dump(Kind.GETCHAIN, Proto.inet) if is_own(m)]
        sets = [dict(attributes(m.body)) for m in netfilter.dump(Kind.GETSET, Proto.inet, _TABLE)]
    except NetlinkError as error:
        if error.errno != ENOENT:
            raise
        return Standing(generation)
    return Standing(
        generation,
        exists=True,
        dormant=bool(int.from_bytes(table.get(2, b""), "big") & DORMANT),
        chains={string(fields[3]): chain_image(fields) for fields in chains},
        sets=tuple(string(f[2]) for f in sets if not int.from_bytes(f.get(3, b""), "big") & ANONYMOUS),
    )


def refuse_owned(netfilter: NetfilterSocket) -> None:
    """Make sure that the table of our name, if there is one, is ours to change.

    Raises:
        RefusedError: it is another process's own.
    """
    try:
        _own_table(netfilter)
    except NetlinkError as error:
        if error.errno != ENOENT:
            raise


def _own_table(netfilter: NetfilterSocket) -> dict[int, bytes]:
    """Return our table's attributes; NetlinkError with ENOENT where there is none."""
    table = dict(attributes(netfilter.get(Kind.GETTABLE, _TABLE).body))
    if int.from_bytes(table.get(2, b""), "big") & _OWNED:
        port = int.from_bytes(table.get(_OWNER, b""), "big")
        raise RefusedError(
            f"table inet {TABLE} belongs to another process alone (flags owner, netlink port {port}, which often "
            "is its PID): nobody else can change it; end that process, or have it delete the table",
            Refusal.OTHER_TOOL,
        )
    return table


def replay(netfilter: NetfilterSocket, encoded: Encoded, wanted: Mapping[str, bytes], standing: Standing) -> None:
    """Commit *encoded*; *wanted* are the attributes that its chains shall have.

    Raises:
        NetlinkError: the rules that stood still stand; ERESTART where they are no longer those
            of *standing*, because somebody else committed in between.
    """
    letter = next((x for x in ascii_lowercase if not _names(encoded, x) & {*standing.sets}), None)
    if letter is None:
        raise NetlinkError(EEXIST, f"table inet {TABLE} is full of sets that are not ours; delete the table")
    steps = [_replacement(encoded, wanted, standing, letter)]
    if encoded.set_names:
        steps.insert(0, encoded.table + encoded.sets.under(letter))
    if standing.dormant:  # alone: together with new chains, kernels refuse it or get it wrong
        steps.append(message(Kind.NEWTABLE, _TABLE + number_attribute(2, 0), NLM_F_ACK))
    generation = standing.generation
    try:
        for step in steps:
            netfilter.commit(batch(step, generation))
            generation = (generation + 1) % _GENERATIONS or 1  # the kernel skips zero
    except NetlinkError:
        if generation != standing.generation:
            _forget(netfilter, _names(encoded, letter) if standing.exists else None, generation)
        raise


def stop(netfilter: NetfilterSocket, chain: str) -> None:
    """Empty *chain* of our table, if it is there."""
    _unless_absent(netfilter, message(Kind.DELRULE, _TABLE + text_attribute(2, chain), NLM_F_ACK))


def remove(netfilter: NetfilterSocket) -> None:
    """Delete our table, if it is there."""
    _unless_absent(netfilter, message(Kind.DELTABLE, _TABLE, NLM_F_ACK))


def _replacement(encoded: Encoded, wanted: Mapping[str, bytes], standing: Standing, letter: str) -> bytes:
    """Return the second phase: from anything that may stand in our table to the new rules."""
    present = standing.chains or {}
    right = {name for name, image in present.items() if image == wanted.get(name)}
    chains = (chain for name, chain in encoded.chains if name not in right)
    return b"".join(
        (
            encoded.table,
            message(Kind.DELRULE, _TABLE) * standing.exists,  # of all chains: rules hold on to sets and chains
            *(message(Kind.DELSET, _TABLE + text_attribute(2, name)) for name in standing.sets),
            *(message(Kind.DELCHAIN, _TABLE + text_attribute(3, name)) for name in present if name not in right),
            *chains,
            encoded.rules.under(letter),
        )
    )


def _names(encoded: Encoded, letter: str) -> set[str]:
    return {f"{name}_{letter}" for name in encoded.set_names}


def _forget(netfilter: NetfilterSocket, sets: set[str] | None, generation: int) -> None:
    """Undo the first phase: delete *sets*, or the table if it is new; else the next replay removes them.

    Not where anybody else has committed since: what stands there may be in use by now.
    """
    requests = [message(Kind.DELSET, _TABLE + text_attribute(2, name), NLM_F_ACK) for name in sets or ()]
    if sets is None:
        requests = [message(Kind.DELTABLE, _TABLE, NLM_F_ACK)]
    with suppress(NetlinkError):
        netfilter.commit(batch(b"".join(requests), generation))


def _unless_absent(netfilter: NetfilterSocket, request: bytes) -> None:
    try:
        netfilter.commit(batch(request))
    except NetlinkError as error:
        if error.errno == EPERM:
            refuse_owned(netfilter)
        if error.errno != ENOENT:
            raise
