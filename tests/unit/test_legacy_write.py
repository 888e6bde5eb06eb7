"""Changing a table while others change it too: what is retried, what is given up, what is lost."""

import errno
import socket
from functools import partial

import pytest

from nodeagent.errors import BusyError, KernelError
from nodeagent.legacy.entries import COUNTER_SIZE, Table, masked
from nodeagent.legacy.splice import put_together, splice, take_apart
from nodeagent.legacy.write import TableChange, make_all, prepare
from nodeagent.legacy.xtables import Kernel, has_family
from nodeagent.model import Family
from tests.unit.test_splice import NAT_HOOKS, OURS, chain, make_rule, table_of

COUNTED = (5).to_bytes(8, "little") + (300).to_bytes(8, "little")


def table(*strangers: int) -> Table:
    """Return a nat table whose OUTPUT holds these strangers' rules."""
    rules = tuple(make_rule(Family.V4, "verdict", "", serial) for serial in strangers)
    return table_of(Family.V4, tuple(chain(Family.V4, name, rules if name == "OUTPUT" else ()) for name in NAT_HOOKS))


def ours() -> Table:
    jump = make_rule(Family.V4, OURS[0], "nodeagent:id", 100)
    built_in = (chain(Family.V4, name, (jump,) if name == "OUTPUT" else ()) for name in NAT_HOOKS)
    return table_of(Family.V4, (*built_in, chain(Family.V4, OURS[0], ())))


CHANGE = partial(splice, ours=take_apart(ours()))


def put(found: Table) -> Table:
    return put_together(CHANGE(take_apart(found)))


def with_ours_outdated() -> Table:
    """Return the table with a stranger's rule and our chain, but without the jump to it."""
    built_in = (
        chain(
            Family.V4,
            c.name,
            c.rules,
        )
        for c in take_apart(table(1)).chains
    )
    return table_of(Family.V4, (*built_in, chain(Family.V4, OURS[0], ())))


class Disturbed(Kernel):
    """A table that others change: each time it is read or replaced, the next of *turns* has happened."""

    def __init__(self, *turns: Table, counters_error: int = 0) -> None:
        self.turns = list(turns)
        self.counters_error = counters_error
        self.family = Family.V4
        self.added = b""
        self.replaced = 0

    @property
    def current(self) -> Table:
        return self.turns[0]

    def read(self, name: str) -> Table:
        assert name == "nat"
        seen = self.current
        self.turns = self.turns[1:] or self.turns
        return seen

    def replace(self, new: Table, number_before: int) -> bytes:
        if number_before != self.current.number:
            raise BlockingIOError(errno.EAGAIN, "another size")
        self.turns = [new]
        self.replaced += 1
        return COUNTED * number_before

    def add_counters(self, name: str, counters: bytes) -> None:
        assert name == "nat"
        if self.counters_error:
            raise OSError(self.counters_error, "add counters")
        self.added = counters


def test_a_table_that_stays_is_replaced_once() -> None:
    kernel = Disturbed(table(1))
    change = TableChange(kernel, "nat", CHANGE)
    assert not change.is_made()
    change.make()
    assert (kernel.current, kernel.replaced) == (put(table(1)), 1)
    assert kernel.added.count(COUNTED) == table(1).number
    assert len(kernel.added) == kernel.current.number * COUNTER_SIZE


def test_a_table_that_holds_the_right_thing_is_not_replaced() -> None:
    kernel = Disturbed(put(table(1)))
    change = TableChange(kernel, "nat", CHANGE)
    assert change.is_made()
    change.make()
    assert kernel.replaced == 0


def test_what_was_prepared_is_used_for_the_table_that_it_is_for() -> None:
    def no_change(_: object) -> None:
        pytest.fail("prepared already")

    kernel = Disturbed(table())
    TableChange(kernel, "nat", no_change, {masked(table()): prepare(table(), CHANGE)}).make()  # type: ignore[arg-type]  # never called
    assert kernel.current == put(table())


@pytest.mark.parametrize(
    "turns",
    [
        pytest.param((table(1), table(2), table(2), table(2)), id="another rule in place of one while preparing"),
        pytest.param((table(1), table(1, 2), table(1, 2)), id="one more rule while preparing"),
        pytest.param((table(1), table(1), table(2, 1), table(2, 1)), id="one more rule right before the replacement"),
        pytest.param((table(1, 2), table(2, 1), table(2, 1)), id="another order while preparing"),
    ],
)
def test_what_others_changed_meanwhile_is_kept(turns: tuple[Table, ...]) -> None:
    kernel = Disturbed(*turns)
    TableChange(kernel, "nat", CHANGE).make()
    assert kernel.current == put(turns[-1])


def test_a_table_that_never_rests_makes_us_give_up() -> None:
    kernel = Disturbed(*(table(serial) for serial in range(1, 50)))
    with pytest.raises(BusyError, match="table ip nat was changed by others 20 times"):
        TableChange(kernel, "nat", CHANGE).make()
    assert kernel.replaced == 0


def test_counters_that_nobody_can_place_any_more_are_given_up() -> None:
    kernel = Disturbed(table(1), counters_error=errno.EINVAL)
    TableChange(kernel, "nat", CHANGE).make()
    assert kernel.current == put(table(1))


def test_counters_that_the_kernel_refuses_otherwise_are_an_error() -> None:
    with pytest.raises(OSError, match="add counters"):
        TableChange(Disturbed(table(1), counters_error=errno.EPERM), "nat", CHANGE).make()


def test_a_kernel_without_ipv6_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_ipv6(domain: int, _: int) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "no such family", domain)

    assert has_family(Family.V4)
    monkeypatch.setattr(socket, "socket", no_ipv6)
    assert not has_family(Family.V6)


# -- several tables ----------------------------------------------------------------------------------


class Refusing(Disturbed):
    """A table of *family* that takes the first *taken* replacements."""

    def __init__(self, family: Family, *turns: Table, taken: int = 9, counters_error: int = 0) -> None:
        super().__init__(*turns, counters_error=counters_error)
        self.family = family
        self.taken = taken

    def replace(self, new: Table, number_before: int) -> bytes:
        if self.replaced >= self.taken:
            raise KernelError("refused by the kernel")
        return super().replace(new, number_before)


@pytest.mark.parametrize(
    ("first", "second", "says", "left"),
    [
        pytest.param(
            Refusing(Family.V4, table(1), taken=0),
            Refusing(Family.V6, table(2)),
            "refused by the kernel; no table was changed",
            (table(1), table(2)),
            id="the first is refused: nothing has changed",
        ),
        pytest.param(
            Refusing(Family.V4, table(1)),
            Refusing(Family.V6, table(2), taken=0),
            "refused by the kernel; what had been added to ip nat was taken back",
            (table(1), table(2)),
            id="the second is refused: what the first got is taken back",
        ),
        pytest.param(
            Refusing(Family.V4, put(table(1)), taken=1),
            Refusing(Family.V6, table(2), taken=0),
            "refused by the kernel; no table was changed",
            (put(table(1)), table(2)),
            id="the first held the right thing already: it keeps it",
        ),
        pytest.param(
            Refusing(Family.V4, with_ours_outdated(), taken=1),
            Refusing(Family.V6, table(2), taken=0),
            "refused by the kernel; changed before that, and left so: ip nat; do it again to finish",
            (put(table(1)), table(2)),
            id="ours stood in the first: it keeps the new rules, and that is said",
        ),
        pytest.param(
            Refusing(Family.V4, table(1), taken=1),
            Refusing(Family.V6, table(2), taken=0),
            "refused by the kernel; what had been added to ip nat could not be taken back "
            "(ip nat: refused by the kernel): clear the namespace",
            (put(table(1)), table(2)),
            id="taking back is refused as well: what stands is said",
        ),
        pytest.param(
            Refusing(Family.V4, table(1)),
            Refusing(Family.V6, table(2), counters_error=errno.EPERM),
            "[Errno 1] add counters; what had been added to ip nat, ip6 nat was taken back",
            (table(1), table(2)),
            id="the second fails after it was replaced: it is taken back too",
        ),
    ],
)
def test_a_failure_leaves_what_it_says(first: Refusing, second: Refusing, says: str, left: tuple[Table, Table]) -> None:
    changes = [TableChange(kernel, "nat", CHANGE) for kernel in (first, second)]
    with pytest.raises(KernelError) as caught:
        make_all(changes)
    assert str(caught.value) == says
    assert (masked(first.current), masked(second.current)) == tuple(map(masked, left))


def test_the_error_says_what_to_do_next() -> None:
    restless = Disturbed(*(table(serial) for serial in range(1, 50)))
    with pytest.raises(BusyError, match="try again; no table was changed"):
        make_all([TableChange(restless, "nat", CHANGE)])
