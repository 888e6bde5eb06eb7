"""The ledger: kernel slots become flows, totals and series that only grow.

Levels, not differences: every number is a sum over the slots that the kernel holds now, plus the
little that is kept (:mod:`nodeagent.ledger.memory`).  So an agent may be killed at any moment.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from nodeagent.ledger.book import Book, HeldSlot
from nodeagent.ledger.choose import Limits, export, used
from nodeagent.ledger.counts import ZERO, minus
from nodeagent.ledger.draft import Draft
from nodeagent.ledger.judge import judge
from nodeagent.ledger.memory import Account, Changes, KnownSlot, Line, Memory
from nodeagent.ledger.naming import OTHER, Naming, protocol_name
from nodeagent.ledger.recall import Recall
from nodeagent.ledger.reclaim import IDLE, LOW, Release, releases, victims
from nodeagent.ledger.report import EVER, Flow, SeriesValue, Total, flows_of, series_of, shown_books, totals_of
from nodeagent.ledger.tally import Leaked, LeakTally
from nodeagent.model import FlowKind, PodName, PodRecord, Reason, Slot, Verdict

RETENTION: Final = 600.0
"""Seconds for which a pod's flows and series outlive it, and slots that are nobody's are kept."""

RANKED: Final = 10.0
"""Seconds after which a pod's destinations are ranked anew, if none is new."""

_LONG_AGO: Final = float("-inf")
_KEPT_ACCOUNTS: Final = 1024  # more than verdicts, reasons and protocols that occur together


class Ledger:
    """The books of a node.

    *memory* is what was kept of the agent before; nobody sees the restart then.  Times are
    seconds of a clock that never jumps and survives the agent, such as CLOCK_BOOTTIME.
    """

    def __init__(
        self, limits: Limits | None = None, naming: Naming | None = None, memory: Memory | None = None
    ) -> None:
        self._limits, self._naming, memory = limits or Limits(), naming or Naming(), memory or Memory()
        self._books: dict[int, Book] = {}
        self._held: dict[int, HeldSlot] = {}
        self._holdings = Counter[int]()
        self._settled = set[tuple[int, int]]()
        self._asked = set[tuple[int, int]]()
        self._strangers = dict.fromkeys(memory.forgotten, _LONG_AGO)
        self._tally, self._tallies = LeakTally(), dict[int, LeakTally]()
        self._arrivals = 0
        self._rename = False
        self._first = True
        self._recall = Recall(memory.slots)
        self._dropped_bytes = memory.dropped_bytes
        self._restore(memory)
        self._draft = Draft(forgotten=memory.orphans)

    def configure(self, limits: Limits, naming: Naming) -> None:
        """Use other limits and names from the next observation on."""
        self._rename = True
        self._limits, self._naming = limits, naming

    # -- observing

    def observe(self, slots: Iterable[Slot] | None, records: Mapping[int, PodRecord], now: float) -> Changes:
        """Take in what the kernel holds and who is who, by pod id; pods without a record have ended.

        The caller must keep what is returned before it shows any number.  Costs little where
        nothing changed; give equal records as the same objects.  *slots* None: nobody can read
        them, which says nothing of what they hold.
        """
        self._meet(records, now)
        if slots is not None:
            self._take_in({slot.position: slot for slot in slots if slot.state}, now)
        if slots is not None or self.is_open:  # who is forgotten unread would leave too little behind
            self._forget(now)
        if slots is not None:
            self._vacate()
            self._close(now)
            self._first = False
        changes = self._draft.finish(self._held, self._books, self._dropped_bytes)
        self._draft = Draft()
        return changes

    def is_new(self, slot: Slot) -> bool:
        """Say whether no observation has seen *slot*: one that was may not be left out of the next."""
        held = self._held.get(slot.position)
        return self.is_open and (held is None or (held.slot.generation, held.slot.key) != (slot.generation, slot.key))

    def _take_in(self, present: dict[int, Slot], now: float) -> None:
        if self._first:
            self._recall.sort(present)
        self._let_go(present)
        for position, slot in present.items():
            held = self._held.get(position)
            if held is None:
                self._appear(slot, now)
            elif held.slot != slot:
                self._update(held, slot, now)
        if self._first:
            self._settle()
        self._take_over()

    def _let_go(self, present: Mapping[int, Slot]) -> None:
        """Take slots out that are gone or changed hands: folded, unless the kernel has lost everything.

        One that goes although nobody asked for it goes together with all others: somebody removed the maps.
        """
        others = ((at, held.slot, present.get(at)) for at, held in self._held.items())
        gone = [at for at, before, slot in others if before is not slot and not _is_same(before, slot)]
        asked = {(at, self._held[at].slot.generation) for at in gone}
        lost = not asked <= self._asked
        self._asked -= asked
        for position in gone:
            self._remove(position, lost=lost)

    def _take_over(self) -> None:
        """Book for good what settled slots hold: from now on it is ours, and no longer the kernel's to keep."""
        for position, generation in self._settled:
            held = self._held.get(position)
            if held and held.slot.generation == generation and self._is_closing(held):
                self._books[held.slot.key.pod].move(held, None)
                self._draft.slots.add(position)
        self._settled.clear()

    def _meet(self, records: Mapping[int, PodRecord], now: float) -> None:
        changed = set(self._books) if self._rename else set[int]()
        self._rename = False
        for pod, record in records.items():
            book = self._books.get(pod) or self._open(record)
            if book.ended is not None:
                book.ended = self._draft.ended[pod] = None
                book.vacated = False
            if pod in self._strangers or (book.record is not record and book.record != record):
                changed.add(pod)
            book.record = record
        for pod in self._books.keys() - records.keys():
            if self._books[pod].ended is None:
                self._books[pod].ended = self._draft.ended[pod] = now
        if changed:
            self._judge_again(changed)

    def _judge_again(self, pods: set[int]) -> None:
        for held in self._held.values():
            pod = held.slot.key.pod
            if pod not in pods:
                continue
            book = self._books[pod]
            if pod in self._strangers:
                self._place(held, book)
            elif not held.evicted and book.move(held, self._line(held, book)):
                self._draft.slots.add(held.slot.position)
        for pod in pods:
            self._strangers.pop(pod, None)

    def _appear(self, slot: Slot, now: float) -> None:
        held = self._held[slot.position] = HeldSlot(slot, idle_since=now)
        self._holdings[slot.key.pod] += 1
        held.evicted_since = now if held.evicted else None
        book = self._books.get(slot.key.pod)
        if book:
            self._place(held, book)
        else:
            self._strangers.setdefault(slot.key.pod, now)

    def _place(self, held: HeldSlot, book: Book) -> None:
        """Book a slot for the first time, or where the agent before had it."""
        known = self._recall.take(held.slot)
        if known:
            held.line, held.base = known.line, known.base if known.base != ZERO else ZERO
            book.join(held, shown=True)
            if not self._book_again(held, book, known):
                return
            self._draft.free.add(known.position)  # before what is kept there from now on
        else:
            held.line = self._line(held, book)
            book.join(held)
            if held.evicted:
                book.retire(held)
        self._draft.slots.add(held.slot.position)

    def _book_again(self, held: HeldSlot, book: Book, known: KnownSlot) -> bool:
        """Book a slot that was *known*, as it is to be booked now; say whether anything of it has changed."""
        if not held.evicted:
            has_moved = book.move(held, self._line(held, book))
        else:
            has_moved = not known.evicted and book.retire(held)
        return has_moved or known[:4] != held.known()[:4]

    def _update(self, held: HeldSlot, slot: Slot, now: float) -> None:
        if slot.counters != held.slot.counters:
            held.idle_since = now
        book = self._books.get(slot.key.pod)
        if book is None:
            held.slot = slot
        else:
            book.grow(held, slot)
        if held.evicted and held.evicted_since is None:
            held.evicted_since = now
            if book:
                book.retire(held)
                self._draft.slots.add(slot.position)

    def _remove(self, position: int, *, lost: bool) -> None:
        held = self._held.pop(position)
        self._holdings[held.slot.key.pod] -= 1
        book = self._books.get(held.slot.key.pod)
        if book:
            (book.keep if lost else book.fold)(held)
        self._draft.release(position)

    def _settle(self) -> None:
        """Account for slots that the agent before knew and that are gone, folded meanwhile, or lost by the kernel."""
        lost = self._recall.has_lost
        for known in self._recall.settle():
            if known.pod in self._books and known.line and not lost:
                self._books[known.pod].lose(known.line.account, known.container, known.base)
            if known.position not in self._draft.slots:
                self._draft.release(known.position)
        for book in self._books.values():
            book.make_good()

    def _line(self, held: HeldSlot, book: Book) -> Line | None:
        key = held.slot.key
        judged = judge(key, book.record)
        if judged is None:
            return None
        account = _account(judged.verdict, judged.reason, protocol_name(key.protocol))
        named = key.kind is FlowKind.FLOW and not held.evicted
        before = held.line.destination if held.line else None
        return Line(account, self._naming.name(key.destination, key.port, before) if named else OTHER)

    # -- pods

    def _open(self, record: PodRecord) -> Book:
        self._arrivals += 1
        book = self._books[record.id] = Book(record, self._arrivals)
        return book

    def _restore(self, memory: Memory) -> None:
        for pod, record in memory.records.items():
            self._open(record).ended = memory.ended.get(pod)
        for correction in memory.corrections:
            if correction.pod in self._books:
                self._books[correction.pod].restore_correction(correction)
        for series in memory.series:
            if series.pod in self._books:
                self._books[series.pod].restore_series(series)

    def _forget(self, now: float) -> None:
        """Close the books of pods that ended long ago."""
        old = {pod for pod, book in self._books.items() if book.ended is not None and now - book.ended >= RETENTION}
        for pod in old:
            book = self._books.pop(pod)
            book.close()
            self._dropped_bytes += _other_bytes(book)
            self._tallies.pop(pod, None)
            self._strangers[pod] = _LONG_AGO
            self._draft.forgotten.add(pod)
            self._draft.dropped = True
        for held in self._held.values() if old else ():
            if held.slot.key.pod in old:
                held.line, held.base = None, ZERO
                self._draft.release(held.slot.position)

    def _vacate(self) -> None:
        """Note whose last slot is gone, of pods that have ended, and of those that nobody knows."""
        self._holdings += Counter()  # without those that hold none
        for pod, book in self._books.items():
            if book.ended is not None and not book.vacated and pod not in self._holdings:
                book.vacated = True
                self._draft.vacated.add(pod)
        gone = self._strangers.keys() - self._holdings.keys()
        self._draft.vacated |= gone
        for pod in gone:
            del self._strangers[pod]

    def _close(self, now: float) -> None:
        room = self._limits.label_sets - sum(map(used, self._books.values()))
        for pod, book in self._books.items():
            if book.fresh or now - book.ranked >= RANKED:
                room -= export(book, self._limits, room)
                book.ranked, book.fresh = now, False
            if book.close():
                leaked = book.leaked()
                more, book.leaks = minus(leaked, book.leaks), leaked
                if more != ZERO and not self._first:
                    self._tallies.setdefault(pod, LeakTally()).add(more, now)
                    self._tally.add(more, now)

    # -- reclaiming slots, in the order of nodeagent.ledger.reclaim

    def abandoned(self, now: float) -> set[int]:
        """Return pods that the kernel still counts, although they ended a while ago, or nobody knows them."""
        live = {held.slot.key.pod for held in self._held.values() if not held.evicted}
        return {pod for pod in live if self._is_abandoned(pod, now)}

    def _is_abandoned(self, pod: int, now: float) -> bool:
        book = self._books.get(pod)
        if book:
            return book.ended is not None and now - book.ended >= IDLE
        return now - self._strangers.get(pod, now) >= RETENTION

    def closing(self) -> list[tuple[int, int]]:
        """Return position and generation of evicted slots of pods that have ended: their counts can be taken over."""
        return [(at, held.slot.generation) for at, held in self._held.items() if self._is_closing(held)]

    def settle(self, slots: Iterable[tuple[int, int]]) -> None:
        """Take note that no program adds to *slots* any more: the next observation takes their counts over."""
        self._settled.update(slots)

    def _is_closing(self, held: HeldSlot) -> bool:
        book = self._books.get(held.slot.key.pod)
        return held.evicted and held.line is not None and book is not None and book.ended is not None

    def victims(self, free: int, capacity: int, now: float) -> list[tuple[int, int]]:
        """Return position and generation of what the kernel should evict, of *capacity* slots of which *free* are."""
        doomed = [held for held in self._held.values() if self._is_doomed(held, now) and not held.evicted]
        free += sum(held.evicted for held in self._held.values())  # those that wait to be released will be
        wanted = int(2 * LOW * capacity) - free - len(doomed) if free < LOW * capacity else 0
        found = victims(self._held.values(), self._books, wanted, now) if wanted > 0 else []
        return [(held.slot.position, held.slot.generation) for held in doomed + found]

    def releases(self, now: float) -> list[Release]:
        """Return what the kernel should release; only after the last observation has been kept."""
        evicted = (held for held in self._held.values() if held.evicted)
        mine = (held for held in evicted if held.slot.key.pod in self._books or self._is_doomed(held, now))
        found = releases((held for held in mine if not self._is_closing(held)), now)
        self._asked.update((release.position, release.generation) for release in found)
        return found

    def _is_doomed(self, held: HeldSlot, now: float) -> bool:
        since = self._strangers.get(held.slot.key.pod)
        return since is not None and now - since >= RETENTION

    # -- showing

    def flows(self, since: float = EVER) -> list[Flow]:
        """Return all flows that were active at *since* or later, of pods that ended within 10 minutes, too.

        When that was is not known of what the agent before counted: it is taken for active when this one first looked.
        None before slots were read.
        """
        if self._first:
            return []
        slots: dict[int, list[HeldSlot]] = {pod: [] for pod in self._books}
        for held in self._held.values():
            if held.slot.key.pod in slots:
                slots[held.slot.key.pod].append(held)
        return [flow for pod, book in self._books.items() for flow in flows_of(book, slots[pod], since)]

    def pods(self) -> list[PodName]:
        """Return the pods whose totals and series are shown: one of a name."""
        return [book.record.name for book in shown_books(self._books)]

    @property
    def is_open(self) -> bool:
        """Whether slots were read: before, nothing is shown, because it would be less than was shown last."""
        return not self._first

    def totals(self) -> list[Total]:
        """Return the pods' totals per verdict, reason and protocol."""
        if self._first:
            return []
        return totals_of(shown_books(self._books))

    def series(self) -> list[SeriesValue]:
        """Return the exported series, never more than the limit allows."""
        if self._first:
            return []
        return series_of(shown_books(self._books), self._limits.label_sets)

    @property
    def overflow_bytes(self) -> int:
        """IP bytes that are in no destination's series; only grows."""
        return self._dropped_bytes + sum(map(_other_bytes, self._books.values()))

    @property
    def strangers(self) -> int:
        """Pods that the kernel counts and nobody knows."""
        return len(self._strangers)

    def leaked(self, now: float) -> Leaked:
        """Return what leaked on the node since the ledger was opened, and lately."""
        return self._tally.leaked(now)

    def leaks(self, now: float) -> dict[int, Leaked]:
        """Return what leaked, by pod id; pods without a leak are left out."""
        return {pod: tally.leaked(now) for pod, tally in self._tallies.items()}

    def memory(self) -> Memory:
        """Return all that has to be kept, for a store that lost it."""
        kept = [book.kept() for book in self._books.values()]
        held = (held.known() for held in self._held.values() if held.slot.key.pod in self._books)
        return Memory(
            slots=self._recall.known() if self._first else tuple(held),
            corrections=tuple(item for corrections, _ in kept for item in corrections),
            series=tuple(item for _, series in kept for item in series),
            records={pod: book.record for pod, book in self._books.items()},
            ended={pod: book.ended for pod, book in self._books.items() if book.ended is not None},
            forgotten=frozenset(pod for pod, since in self._strangers.items() if since == _LONG_AGO),
            dropped_bytes=self._dropped_bytes,
        )


def _is_same(slot: Slot, now: Slot | None) -> bool:
    return now is not None and (slot.generation, slot.key) == (now.generation, now.key)


@lru_cache(maxsize=_KEPT_ACCOUNTS)
def _account(verdict: Verdict, reason: Reason, protocol: str) -> Account:
    """Return the one object that all lines of an account share."""
    return Account(verdict, reason, protocol)


def _other_bytes(book: Book) -> int:
    return sum(counters.bytes for counters in book.others.values())
