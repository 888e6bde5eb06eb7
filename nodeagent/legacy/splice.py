"""Take our rules out of a table, or put others in their place; strangers' stay as they are.

Pure: bytes in, bytes out.  Promises: strangers' entries keep their bytes (jumps are re-aimed at
where their chain went) and their order; taking out what was put in gives the same table again.

Ours are: chains whose name begins with ``NODEAGENT_``, and rules of built-in chains whose
*comment* begins with ``nodeagent:``.  A stranger's jump to a chain of ours is not ours.
Refuses to remove a chain that such a jump needs, and tables laid out in an unknown way.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Final

from nodeagent.compile.legacy import CHAIN_PREFIX, COMMENT_PREFIX
from nodeagent.errors import Refusal, RefusedError, printable
from nodeagent.legacy import entries as xt
from nodeagent.legacy.entries import COUNTER_SIZE, ERROR_TARGET, HOOKS, Table
from nodeagent.model import Family

FIRST: Final = frozenset({("nat", "OUTPUT"), ("raw", "OUTPUT"), ("raw", "PREROUTING")})
"""Built-in chains in which ours must come first; elsewhere they may stand anywhere."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, and what its place in the table means.

    ``index`` is its number in the table it was read from, None if it comes from elsewhere.
    ``jump`` names the chain it goes to; ``falls`` says that it has no target.
    """

    data: bytes
    index: int | None
    jump: str | None = None
    falls: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain: a user's begins with ``head``, a built-in one has a ``hook``; both end with ``tail``."""

    name: str
    hook: int | None
    head: Entry | None
    rules: tuple[Entry, ...]
    tail: Entry

    @property
    def ours(self) -> bool:
        """Whether the whole chain is ours, by its name."""
        return self.hook is None and self.name.startswith(CHAIN_PREFIX)

    def entries(self) -> Iterator[Entry]:
        """Yield all entries in order."""
        yield from (self.head,) if self.head else ()
        yield from self.rules
        yield self.tail


@dataclass(frozen=True, slots=True)
class Layered:
    """A table taken apart into chains, in its own order; ``end`` is the entry that closes it."""

    table: Table
    chains: tuple[Chain, ...]
    end: Entry

    def entries(self) -> Iterator[Entry]:
        """Yield all entries in order."""
        for chain in self.chains:
            yield from chain.entries()
        yield self.end


# -- apart and together ---------------------------------------------------------------------------


@dataclass(slots=True)
class _Draft:
    """A chain while its entries come in."""

    name: str
    hook: int | None = None
    head: Entry | None = None
    entries: list[Entry] = field(default_factory=list)
    first_at: int = -1
    last_at: int = -1


def take_apart(table: Table) -> Layered:
    """Return *table* as chains; :func:`put_together` undoes it.

    Raises:
        KernelError: the layout is not the one that iptables makes.
    """
    try:
        return _take_apart(table)
    except (struct.error, IndexError):  # an extension that ends beyond its entry
        raise xt.unknown_layout(table) from None


def _take_apart(table: Table) -> Layered:
    *body, (_, last) = list(xt.split(table)) or [(0, b"")]
    end = Entry(last, len(body))
    drafts = _drafts(table, body)
    heads = {draft.first_at: draft.name for draft in drafts if draft.head}
    chains = tuple(_finish(table, draft, heads) for draft in drafts)
    names = {chain.name for chain in chains}
    if len(names) != len(chains) or len(body) + 1 != table.number or not _is_end(table, end):
        raise xt.unknown_layout(table)
    return Layered(table, chains, end)


def put_together(layered: Layered) -> Table:
    """Return the table of these chains, each hook, jump and fall-through at its new place."""
    entries = tuple(layered.entries())
    ends = tuple(accumulate(len(entry.data) for entry in entries))
    table = layered.table
    starts: dict[str, int] = {}
    hook_entry, underflow = list(table.hook_entry), list(table.underflow)
    at = 0
    for chain in layered.chains:
        at += len(chain.head.data) if chain.head else 0
        starts[chain.name] = at
        at += sum(len(rule.data) for rule in chain.rules)
        if chain.hook is not None:
            hook_entry[chain.hook], underflow[chain.hook] = starts[chain.name], at
        at += len(chain.tail.data)
    placed = (_aim(table.family, entry, starts, end) for entry, end in zip(entries, ends, strict=True))
    return replace(
        table,
        hook_entry=tuple(hook_entry),
        underflow=tuple(underflow),
        number=len(entries),
        entries=b"".join(placed),
    )


def _drafts(table: Table, body: Iterable[tuple[int, bytes]]) -> list[_Draft]:
    """Sort the entries by chain: one begins where a hook enters, or with a head."""
    hooks = {table.hook_entry[hook]: hook for hook in table.hooks()}
    drafts: list[_Draft] = []
    for index, (at, data) in enumerate(body):
        entry = Entry(data, index)
        target = xt.target(table.family, data)
        if target.name == ERROR_TARGET:
            drafts.append(_Draft(target.data.split(b"\0")[0].decode("latin-1"), head=entry))
            continue
        if at in hooks:
            drafts.append(_Draft(HOOKS[hooks[at]], hook=hooks[at]))
        if not drafts:
            raise xt.unknown_layout(table)
        draft = drafts[-1]
        draft.first_at = at if draft.first_at < 0 else draft.first_at
        draft.last_at = at
        draft.entries.append(entry)
    return drafts


def _finish(table: Table, draft: _Draft, heads: Mapping[int, str]) -> Chain:
    """Name the jumps of a chain; its last entry is its policy, or the return to its caller."""
    if not draft.entries or (draft.hook is not None and table.underflow[draft.hook] != draft.last_at):
        raise xt.unknown_layout(table)
    named = []
    at = draft.first_at
    for entry in draft.entries:
        at += len(entry.data)
        named.append(_name(table, entry, heads, at))
    *rules, tail = named
    if tail.jump or tail.falls:
        raise xt.unknown_layout(table)
    return Chain(draft.name, draft.hook, draft.head, tuple(rules), tail)


def _name(table: Table, entry: Entry, heads: Mapping[int, str], end: int) -> Entry:
    """Return *entry*, which ends at *end*, with its verdict understood."""
    target = xt.target(table.family, entry.data)
    number = -1 if target.name else xt.verdict(target.data)
    if number < 0:
        return entry
    if number == end:
        return replace(entry, falls=True)
    if number not in heads:
        raise xt.unknown_layout(table)
    return replace(entry, jump=heads[number])


def _is_end(table: Table, end: Entry) -> bool:
    return end.data != b"" and xt.target(table.family, end.data).name == ERROR_TARGET


def _aim(family: Family, entry: Entry, starts: Mapping[str, int], end: int) -> bytes:
    if entry.jump is not None:
        return xt.with_verdict(family, entry.data, starts[entry.jump])
    return xt.with_verdict(family, entry.data, end) if entry.falls else entry.data


# -- ours and theirs ------------------------------------------------------------------------------


def is_ours(family: Family, rule: Entry) -> bool:
    """Say whether a rule of a *built-in* chain is ours: by its comment alone."""
    return xt.comment(family, rule.data).startswith(COMMENT_PREFIX)


def splice(current: Layered, ours: Layered | None) -> Layered:
    """Return *current* with our rules from *ours* in place of those it has; None: with none.

    Only what is ours is taken from *ours*: the rest of it is ignored.

    Raises:
        RefusedError: a stranger's rule jumps to a chain of ours that would go.
    """
    wanted = {chain.name: _imported(chain, ours.table.family) for chain in ours.chains} if ours else {}
    new = [chain for chain in wanted.values() if chain.ours]
    strangers = [chain for chain in current.chains if chain.hook is None and not chain.ours]
    built_in = tuple(
        _rebuild(current.table, chain, wanted[chain.name].rules if chain.name in wanted else ())
        for chain in current.chains
        if chain.hook is not None
    )
    _refuse_dangling(current, {chain.name for chain in new})
    return Layered(current.table, (*built_in, *_sorted_in(strangers, new)), current.end)


def emptied(current: Layered) -> Layered:
    """Return *current* with our chains empty; of our rules elsewhere, only jumps to them stay.

    Whatever else is ours in a built-in chain could still lead to a redirect.
    """
    own = {chain.name for chain in current.chains if chain.ours}
    return replace(current, chains=tuple(_emptied_chain(current.table.family, chain, own) for chain in current.chains))


def carried_counters(new: Layered, counters: bytes) -> bytes:
    """Return the counters to add to *new*, once put together, so that no stranger lost any.

    *counters* are those that the replaced table had; ours begin at zero.
    """
    zero = bytes(COUNTER_SIZE)
    return b"".join(
        zero if entry.index is None else counters[COUNTER_SIZE * entry.index : COUNTER_SIZE * (entry.index + 1)]
        for entry in new.entries()
    )


def _imported(chain: Chain, family: Family) -> Chain:
    """Return *chain* as it comes into another table: ours only, without numbers."""
    rules = tuple(replace(rule, index=None) for rule in chain.rules if chain.ours or is_ours(family, rule))
    head = replace(chain.head, index=None) if chain.head else None
    return replace(chain, head=head, rules=rules, tail=replace(chain.tail, index=None))


def _rebuild(table: Table, chain: Chain, ours: tuple[Entry, ...]) -> Chain:
    """Return a built-in chain with *ours* first, or where they were if their place means nothing."""
    theirs: list[Entry] = []
    place = None
    for rule in chain.rules:
        if not is_ours(table.family, rule):
            theirs.append(rule)
        elif place is None:
            place = len(theirs)
    if place is None or (table.name, chain.name) in FIRST:
        place = 0
    return replace(chain, rules=(*theirs[:place], *ours, *theirs[place:]))


def _emptied_chain(family: Family, chain: Chain, own: set[str]) -> Chain:
    if chain.ours:
        return replace(chain, rules=())
    if chain.hook is None:
        return chain
    return replace(chain, rules=tuple(rule for rule in chain.rules if rule.jump in own or not is_ours(family, rule)))


def _sorted_in(strangers: list[Chain], ours: list[Chain]) -> list[Chain]:
    """Return the users' chains by name, as libiptc keeps them; at the end if it does not."""
    names = [chain.name for chain in strangers]
    if names == sorted(names):
        return sorted((*strangers, *ours), key=lambda chain: chain.name)
    return [*strangers, *ours]


def _refuse_dangling(current: Layered, kept: set[str]) -> None:
    gone = {chain.name for chain in current.chains if chain.ours} - kept
    family = current.table.family
    for chain in current.chains:
        for rule in () if chain.ours else chain.rules:
            if rule.jump in gone and not (chain.hook is not None and is_ours(family, rule)):
                raise RefusedError(
                    f"table {current.table.label}: a rule in {printable(chain.name)} that is not ours jumps to our "
                    f"chain {rule.jump}, which has to go: remove that rule first",
                    Refusal.OTHER_TOOL,
                )
