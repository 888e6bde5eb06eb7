"""Splicing leaves strangers' rules as they were: properties over tables that hypothesis makes up."""

import struct
from contextlib import suppress
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.errors import KernelError, RefusedError
from nodeagent.legacy.entries import COUNTER_SIZE, HOOKS, LAYOUTS, Table, mask
from nodeagent.legacy.mark import is_as_marked, mark_of
from nodeagent.legacy.splice import (
    Chain,
    Entry,
    Layered,
    carried_counters,
    emptied,
    is_ours,
    put_together,
    splice,
    take_apart,
)
from nodeagent.model import Family

settings.register_profile("no wall clock", deadline=None)
settings.load_profile("no wall clock")

ACCEPT, RETURN = -2, -5
NAT_HOOKS = ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")
STRANGERS = ("FOREIGN", "KUBE-SERVICES", "Z")
OURS = ("NODEAGENT_OUTPUT", "NODEAGENT_PREROUTING")


def extension(name: bytes, data: bytes) -> bytes:
    padded = data + bytes(-len(data) % 8)
    return struct.pack("=H29sB", 32 + len(padded), name, 0) + padded


def entry(family: Family, target: bytes, comment: str = "", source: int = 0) -> bytes:
    """Return an entry as the kernel has it; *source* makes it one of a kind."""
    layout = LAYOUTS[family]
    matches = extension(b"comment", comment.encode().ljust(256, b"\0")) if comment else b""
    header = bytearray(source.to_bytes(4, "big").ljust(layout.size, b"\0"))
    offset = layout.size + len(matches)
    struct.pack_into("=HH", header, layout.offsets_at, offset, offset + len(target))
    return bytes(header) + matches + target


def standard(verdict: int) -> bytes:
    return extension(b"", struct.pack("=i", verdict))


def error(name: str) -> bytes:
    return extension(b"ERROR", name.encode().ljust(30, b"\0"))


def make_rules(
    family: Family, draw: st.DrawFn, chains: tuple[str, ...], serial: "count[int]", comment: str
) -> tuple[Entry, ...]:
    kinds = st.lists(st.sampled_from(("falls", "verdict", "redirect", *chains)), max_size=4)
    return tuple(make_rule(family, kind, comment, next(serial)) for kind in draw(kinds))


def make_rule(family: Family, kind: str, comment: str, serial: int) -> Entry:
    if kind == "falls":
        return Entry(entry(family, standard(0), comment, serial), None, falls=True)
    if kind == "verdict":
        return Entry(entry(family, standard(RETURN), comment, serial), None)
    if kind == "redirect":
        return Entry(entry(family, extension(b"REDIRECT", bytes(24)), comment, serial), None)
    return Entry(entry(family, standard(0), comment, serial), None, jump=kind)


def chain(family: Family, name: str, rules: tuple[Entry, ...]) -> Chain:
    hook = HOOKS.index(name) if name in HOOKS else None
    head = None if hook is not None else Entry(entry(family, error(name)), None)
    return Chain(name, hook, head, rules, Entry(entry(family, standard(RETURN if head else ACCEPT)), None))


def table_of(family: Family, chains: tuple[Chain, ...]) -> Table:
    empty = Table(family, "nat", sum(1 << HOOKS.index(name) for name in NAT_HOOKS), (0,) * 5, (0,) * 5, 0, b"")
    return put_together(Layered(empty, chains, Entry(entry(family, error("ERROR")), None)))


@st.composite
def strangers_table(draw: st.DrawFn, family: Family) -> Table:
    serial = count(1)
    users = tuple(draw(st.lists(st.sampled_from(STRANGERS), unique=True)))
    comment = draw(st.sampled_from(("", "stranger", "not nodeagent:")))
    return table_of(
        family,
        tuple(chain(family, name, make_rules(family, draw, users, serial, comment)) for name in (*NAT_HOOKS, *users)),
    )


@st.composite
def our_table(draw: st.DrawFn, family: Family) -> Table:
    """Return a table as the encoder makes it: nothing but ours in it."""
    serial = count(1000)
    users = tuple(sorted(draw(st.lists(st.sampled_from(OURS), unique=True))))
    jumps = tuple(make_rule(family, name, "nodeagent:id", next(serial)) for name in users)
    built_in = tuple(chain(family, name, jumps if name == "OUTPUT" else ()) for name in NAT_HOOKS)
    own = tuple(chain(family, name, make_rules(family, draw, (), serial, "nodeagent:why")) for name in users)
    return table_of(family, (*built_in, *own))


families = st.sampled_from(Family)
strangers_tables = families.flatmap(strangers_table)
pairs = families.flatmap(lambda family: st.tuples(strangers_table(family), our_table(family)))
triples = families.flatmap(lambda family: st.tuples(strangers_table(family), our_table(family), our_table(family)))


def put(table: Table, ours: Table | None) -> Table:
    return put_together(splice(take_apart(table), take_apart(ours) if ours else None))


@given(strangers_tables)
def test_taking_apart_and_putting_together_is_the_identity(table: Table) -> None:
    assert put_together(take_apart(table)) == table


@given(pairs)
def test_applying_and_clearing_is_the_identity(pair: tuple[Table, Table]) -> None:
    strangers, ours = pair
    assert put(put(strangers, ours), None) == strangers


@given(triples)
def test_what_stood_before_does_not_show(triple: tuple[Table, Table, Table]) -> None:
    strangers, first, second = triple
    assert put(put(strangers, first), second) == put(strangers, second)


@given(pairs)
def test_a_second_time_changes_nothing(pair: tuple[Table, Table]) -> None:
    once = put(*pair)
    assert put(once, pair[1]) == once


@given(pairs)
def test_ours_run_first_and_strangers_keep_their_order(pair: tuple[Table, Table]) -> None:
    strangers, ours = pair
    family = strangers.family
    before, after = take_apart(strangers), take_apart(put(*pair))
    for one in after.chains:
        if one.hook is not None:
            mine = [is_ours(family, rule) for rule in one.rules]
            assert mine == sorted(mine, reverse=True)
    assert theirs(after) == theirs(before)
    assert {c.name: len(c.rules) for c in after.chains if c.ours} == {
        c.name: len(c.rules) for c in take_apart(ours).chains if c.ours
    }


def theirs(layered: Layered) -> list[tuple[str, str | None, bytes]]:
    """Return strangers' rules with what they jump to, where they stand in no more."""
    family = layered.table.family
    return [
        (one.name, rule.jump, mask(family, rule.data) if not (rule.jump or rule.falls) else rule.data[:4])
        for one in layered.chains
        if not one.ours
        for rule in one.rules
        if one.hook is None or not is_ours(family, rule)
    ]


@given(pairs)
def test_every_strangers_counter_is_carried_and_ours_begin_at_zero(pair: tuple[Table, Table]) -> None:
    strangers, ours = pair
    counters = b"".join(number.to_bytes(COUNTER_SIZE, "little") for number in range(1, strangers.number + 1))
    spliced = splice(take_apart(strangers), take_apart(ours))
    carried = carried_counters(spliced, counters)
    numbers = [int.from_bytes(carried[i : i + COUNTER_SIZE], "little") for i in range(0, len(carried), COUNTER_SIZE)]
    assert len(numbers) == put_together(spliced).number
    assert [number for number in numbers if number] == list(range(1, strangers.number + 1))
    assert sum(not number for number in numbers) == len(numbers) - strangers.number


@given(pairs)
def test_emptying_leaves_jumps_and_strangers(pair: tuple[Table, Table]) -> None:
    standing = take_apart(put(*pair))
    left = take_apart(put_together(emptied(standing)))
    assert all(not one.rules for one in left.chains if one.ours)
    assert [one.name for one in left.chains] == [one.name for one in standing.chains]
    assert theirs(left) == theirs(standing)


@given(strangers_tables, st.data())
def test_a_damaged_table_is_refused_or_kept_as_it_is(table: Table, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(table.entries) - 1))
    damaged = bytearray(table.entries)
    damaged[at] ^= data.draw(st.integers(1, 255))
    broken = replace(table, entries=bytes(damaged))
    with suppress(KernelError):
        assert put_together(take_apart(broken)) == broken


@given(strangers_tables, st.integers(0, 200))
def test_a_cut_table_is_refused(table: Table, length: int) -> None:
    with pytest.raises(KernelError, match="not touched"):
        take_apart(replace(table, entries=table.entries[:length]))


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("where", ["OUTPUT", "FOREIGN"])
def test_a_chain_that_a_stranger_jumps_to_is_not_removed(family: Family, where: str) -> None:
    jump = make_rule(family, OURS[0], "", 1)
    chains = [chain(family, name, (jump,) if name == where else ()) for name in (*NAT_HOOKS, "FOREIGN", OURS[0])]
    table = table_of(family, tuple(chains))
    with pytest.raises(RefusedError, match=f"a rule in {where} that is not ours jumps to our chain {OURS[0]}"):
        put(table, None)
    same = table_of(family, tuple(chain(family, name, ()) for name in (*NAT_HOOKS, OURS[0])))
    assert put(table, same) == table


@pytest.mark.parametrize("family", Family)
def test_a_comment_of_ours_in_a_strangers_chain_is_the_strangers(family: Family) -> None:
    rule = make_rule(family, "verdict", "nodeagent:id", 1)
    table = table_of(
        family, tuple(chain(family, name, (rule,) if name == "FOREIGN" else ()) for name in (*NAT_HOOKS, "FOREIGN"))
    )
    assert put(table, None) == table


@pytest.mark.parametrize("family", Family)
def test_the_permanent_rule_stays_where_it_is(family: Family) -> None:
    keep, other = make_rule(family, "falls", "nodeagent:keep", 1), make_rule(family, "verdict", "", 2)
    ours = replace(
        table_of(family, tuple(chain(family, name, (keep,) if name == "OUTPUT" else ()) for name in NAT_HOOKS)),
        name="mangle",
    )
    found = table_of(
        family, tuple(chain(family, name, (other, keep) if name == "OUTPUT" else ()) for name in NAT_HOOKS)
    )
    assert put(replace(found, name="mangle"), ours) == replace(found, name="mangle")


@given(strangers_tables, st.data())
def test_a_mark_stands_whatever_counters_say_and_for_nothing_else(table: Table, data: st.DataObject) -> None:
    marks = mark_of([table])
    assert marks is not None
    at = data.draw(st.integers(0, len(table.entries) - 1))
    entries = table.entries[:at] + data.draw(st.binary(min_size=1, max_size=1)) + table.entries[at + 1 :]
    other = replace(table, entries=entries)
    with suppress(struct.error):  # what the kernel would never take
        assert is_as_marked([other], marks) == (mask(table.family, entries) == mask(table.family, table.entries))
    assert is_as_marked([table], marks)
    assert not is_as_marked([], marks)
    assert not is_as_marked([replace(table, hook_entry=tuple(n + 1 for n in table.hook_entry))], marks)
    assert not is_as_marked([replace(table, entries=table.entries + bytes(8))], marks)
