"""One pod's books: slots on lines, and what was moved between them.

Invariants, which the property tests hold it to:

- an account's total = the levels of its lines + its corrections;
- a slot's level = its counters - its base, where the base was booked elsewhere;
- an active series = its offset + its line's level; a frozen one = its offset;
- an account's ``other`` = its total - its series, frozen ones included;
- moving a slot, and folding it in the kernel, change no total and no series.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import reduce

from nodeagent.ledger.counts import ZERO, least, minus, most, plus
from nodeagent.ledger.memory import Account, Correction, KnownSeries, KnownSlot, Line, describe_key
from nodeagent.ledger.naming import OTHER
from nodeagent.ledger.reasons import LEAKS
from nodeagent.model import Counters, PodRecord, Slot, SlotState


@dataclass(slots=True)
class HeldSlot:
    """A slot that the kernel holds, where it is booked, and since when it is idle or evicted."""

    slot: Slot
    idle_since: float
    line: Line | None = None
    base: Counters = ZERO
    evicted_since: float | None = None

    @property
    def level(self) -> Counters:
        """What of its counters is booked on its line."""
        return minus(self.slot.counters, self.base)

    @property
    def evicted(self) -> bool:
        """Whether no packet finds it any more."""
        return self.slot.state is SlotState.EVICTED

    def known(self) -> KnownSlot:
        """Return what has to be kept."""
        position, generation, _, key, _ = self.slot
        text, evicted = describe_key(key), self.evicted
        return KnownSlot(position, generation, text, evicted, key.pod, key.container, self.line, self.base)


@dataclass(slots=True)
class Group:
    """One line: its slots' level, the part of it that ``other`` has shown, and its series if there is one."""

    level: Counters = ZERO
    shown: Counters = ZERO
    slots: int = 0
    offset: Counters | None = None
    active: bool = False

    @property
    def value(self) -> Counters:
        """What the line's series shows."""
        offset = self.offset or ZERO
        return plus(offset, self.level) if self.active else offset


@dataclass(slots=True)
class Book:
    """The books of one pod.

    ``vacated`` says whether it has ended and no slot is its own any more.  ``others`` holds what the
    accounts' ``other`` show, as of the last :meth:`close`.  ``fresh`` says that there are lines which
    nobody ranked yet; ``ranked``, when that was done last; ``leaks``, what of the leaks has been told.
    """

    record: PodRecord
    arrived: int
    ended: float | None = None
    vacated: bool = False
    ranked: float = float("-inf")
    fresh: bool = False
    leaks: Counters = ZERO
    groups: dict[Line, Group] = field(default_factory=dict)
    corrections: dict[tuple[Account, int], Counters] = field(default_factory=dict)
    others: dict[Account, Counters] = field(default_factory=dict)
    series_count: int = 0
    _exact_others: dict[Account, Counters] = field(default_factory=dict)
    _stale: set[Account] = field(default_factory=set)
    _touched: set[Line] = field(default_factory=set)
    _touched_corrections: set[tuple[Account, int]] = field(default_factory=set)
    _touched_series: set[Line] = field(default_factory=set)

    # -- what was kept

    def restore_correction(self, kept: Correction) -> None:
        """Take up a correction; before any slot."""
        self.corrections[kept.account, kept.container] = kept.counters
        self._add_other(kept.account, kept.counters)

    def restore_series(self, kept: KnownSeries) -> None:
        """Take up a series; before any slot."""
        self.groups[kept.line] = Group(offset=kept.offset, active=kept.active)
        self.series_count += 1
        self._add_other(kept.line.account, minus(ZERO, kept.offset))

    # -- slots

    def join(self, held: HeldSlot, *, shown: bool = False) -> None:
        """Book the level of a slot that was in no book; *shown* if ``other`` may have shown it before a restart."""
        if not held.line:
            return
        group = self.groups.get(held.line)
        if group is None:
            group, self.fresh = self.groups.setdefault(held.line, Group()), True
        group.slots += 1
        group.level = plus(group.level, held.level)
        if shown:
            group.shown = plus(group.shown, held.level)
        self._count(held.line, group, held.level)

    def grow(self, held: HeldSlot, slot: Slot) -> None:
        """Take note of what the kernel counted since."""
        if held.line and slot.counters != held.slot.counters:
            group, more = self.groups[held.line], minus(slot.counters, held.slot.counters)
            alone = group.slots == 1 and held.base is ZERO  # as most are: then both are the same numbers, kept once
            group.level = slot.counters if alone else plus(group.level, more)
            self._count(held.line, group, more)
        held.slot = slot

    def move(self, held: HeldSlot, line: Line | None) -> bool:
        """Book on *line* what comes from now on; say whether that is a change."""
        if line == held.line:
            return False
        if held.line:
            self._correct(held.line.account, held.slot.key.container, self._leave(held.line, held.level))
        held.line, held.base = line, held.slot.counters
        self.join(held)
        return True

    def retire(self, held: HeldSlot) -> bool:
        """Book for good what a slot held when it was found evicted, and under ``other`` what comes still.

        Its base is then what it counted, which tells it from others of its key wherever an upgrade moves it.
        """
        if held.line is None or (held.line.destination == OTHER and held.level == ZERO):
            return False
        line = Line(held.line.account, OTHER)
        self._correct(line.account, held.slot.key.container, self._leave(held.line, held.level))
        held.line, held.base = line, held.slot.counters
        self.join(held)
        return True

    def fold(self, held: HeldSlot) -> None:
        """Take a slot out that is gone: a folded slot of its account has its counters now, its base and all."""
        if held.line:
            self._leave(held.line, held.level)
            self.lose(held.line.account, held.slot.key.container, held.base)

    def keep(self, held: HeldSlot) -> None:
        """Take a slot out whose counts the kernel has lost: they stay in the account's total."""
        if held.line:
            self._correct(held.line.account, held.slot.key.container, self._leave(held.line, held.level))

    def make_good(self) -> None:
        """Let no series, and no ``other``, be less than nothing: what is missing was lost while nobody looked."""
        for line, group in self.series():
            missing = minus(ZERO, least(ZERO, group.value))
            if missing != ZERO:
                group.offset = plus(group.offset or ZERO, missing)
                self._touched_series.add(line)
                self._add_other(line.account, minus(ZERO, missing))
        for account, counters in list(self._exact_others.items()):
            self._correct(account, 0, minus(ZERO, least(ZERO, counters)))

    def lose(self, account: Account, container: int, base: Counters) -> None:
        """Make good for the base of a slot that was folded: it was booked elsewhere, and is in the folded slot, too."""
        self._correct(account, container, minus(ZERO, base))

    def _leave(self, line: Line, level: Counters) -> Counters:
        group = self.groups[line]
        group.level = minus(group.level, level)
        group.slots -= 1
        self._add_other(line.account, minus(ZERO, level))
        if group.active:
            group.offset = plus(group.offset or ZERO, level)
            self._touched_series.add(line)
        elif not group.slots and group.offset is None:
            del self.groups[line]
            self._touched.discard(line)
        return level

    def _correct(self, account: Account, container: int, counters: Counters) -> None:
        if counters != ZERO:
            at = account, container
            self.corrections[at] = plus(self.corrections.get(at, ZERO), counters)
            self._touched_corrections.add(at)
            self._add_other(account, counters)

    def _count(self, line: Line, group: Group, more: Counters) -> None:
        self._touched.add(line)
        self._add_other(line.account, ZERO if group.active else more)

    def _add_other(self, account: Account, more: Counters) -> None:
        self._exact_others[account] = plus(self._exact_others.get(account, ZERO), more)
        self._stale.add(account)

    # -- series

    def promote(self, line: Line) -> None:
        """Export a series of the line's own from now on: what ``other`` has shown of it stays there."""
        group = self.groups[line]
        self.series_count += group.offset is None
        shown = least(group.shown, group.level)
        group.offset, group.active = minus(group.offset or ZERO, shown), True
        self._add_other(line.account, minus(shown, group.level))
        self._touched_series.add(line)

    def demote(self, line: Line) -> None:
        """Freeze the line's series: what comes from now on is in ``other``."""
        group = self.groups[line]
        group.offset, group.active = group.value, False
        self._touched_series.add(line)

    def series(self) -> Iterator[tuple[Line, Group]]:
        """Return the lines that have a series, frozen ones included."""
        return ((line, group) for line, group in self.groups.items() if group.offset is not None)

    def active(self) -> set[str]:
        """Return the destinations whose series grow."""
        return {line.destination for line, group in self.series() if group.active}

    def close(self) -> bool:
        """Bring ``others`` up to date; say whether anything was counted or moved since.

        They never fall, even where a reader sees a slot freed before it sees where its counts went.
        """
        stale = bool(self._stale)
        for account in self._stale:
            self.others[account] = most(self.others.get(account, ZERO), self._exact_others[account])
        for line in self._touched:
            self.groups[line].shown = self.groups[line].level
        self._stale.clear()
        self._touched.clear()
        return stale

    def totals(self) -> dict[Account, Counters]:
        """Return each account's total, as of the last :meth:`close`: the sum of all that is shown of it."""
        totals = dict(self.others)
        for line, group in self.series():
            totals[line.account] = plus(totals.get(line.account, ZERO), group.value)
        return totals

    def leaked(self) -> Counters:
        """Return the total of all leaks."""
        if LEAKS.isdisjoint(account.reason for account in self.others):
            return ZERO
        leaks = (counters for account, counters in self.totals().items() if account.reason in LEAKS)
        return reduce(plus, leaks, ZERO)

    def scores(self) -> dict[str, int]:
        """Return how many bytes went to and came from each destination that has a name."""
        scores: dict[str, int] = {}
        for line, group in self.groups.items():
            if line.destination != OTHER:
                moved = group.level.bytes + group.level.received_bytes
                scores[line.destination] = scores.get(line.destination, 0) + moved
        return scores

    # -- what has to be kept

    def changed(self) -> tuple[list[Correction], list[KnownSeries]]:
        """Return corrections and series that changed since this was last asked."""
        corrections, series = self._corrections(self._touched_corrections), self._series(self._touched_series)
        self._touched_corrections.clear()
        self._touched_series.clear()
        return corrections, series

    def kept(self) -> tuple[list[Correction], list[KnownSeries]]:
        """Return all corrections and series."""
        return self._corrections(self.corrections), self._series(line for line, _ in self.series())

    def _corrections(self, only: Iterable[tuple[Account, int]]) -> list[Correction]:
        return [Correction(self.record.id, container, a, self.corrections[a, container]) for a, container in only]

    def _series(self, only: Iterable[Line]) -> list[KnownSeries]:
        groups = ((line, self.groups[line]) for line in only)
        return [KnownSeries(self.record.id, line, group.active, group.offset or ZERO) for line, group in groups]
