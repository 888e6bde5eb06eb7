"""The ledger's memory as rows of the tables in :mod:`nodeagent.state.schema`, and back."""

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from sqlite3 import Connection
from typing import Any

from nodeagent.ledger import Account, Changes, Correction, KnownSeries, KnownSlot, Line
from nodeagent.model import Counters, Reason, Verdict
from nodeagent.state.schema import to_signed, to_unsigned

_NOTHING = Counters()
_OF_PODS = ("slots", "corrections", "series")


def write_changes(db: Connection, changes: Changes) -> None:
    """Write what one observation changed."""
    db.executemany("DELETE FROM slots WHERE position = ?", ((position,) for position in changes.free))
    for table in _OF_PODS:
        db.executemany(
            f"DELETE FROM {table} WHERE pod = ?",  # noqa: S608  # a constant of ours
            ((to_signed(pod),) for pod in changes.forgotten),
        )
    write_slots(db, changes.slots)
    write_corrections(db, changes.corrections)
    write_series(db, changes.series)
    db.executemany(
        "UPDATE pods SET ended = ? WHERE id = ?", ((at, to_signed(pod)) for pod, at in changes.ended.items())
    )
    db.executemany("UPDATE pods SET forgotten = 1 WHERE id = ?", ((to_signed(pod),) for pod in changes.forgotten))
    if changes.dropped_bytes is not None:
        write_fact(db, "dropped_bytes", changes.dropped_bytes)


def write_slots(db: Connection, slots: Iterable[KnownSlot]) -> None:
    """Insert or replace where slots are booked."""
    db.executemany("INSERT OR REPLACE INTO slots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_slot_row, slots))


def _slot_row(slot: KnownSlot) -> tuple[Any, ...]:
    line = (*slot.line.account, slot.line.destination) if slot.line else (None,) * 4
    base = _write_counters(slot.base) if slot.base != _NOTHING else None
    where = (slot.position, slot.generation, slot.key, slot.evicted, to_signed(slot.pod), to_signed(slot.container))
    return (*where, *line, base)


def read_slots(db: Connection) -> Iterator[KnownSlot]:
    """Return where all slots are booked."""
    for position, generation, key, evicted, pod, container, *line, base in db.execute("SELECT * FROM slots"):
        yield KnownSlot(
            position,
            generation,
            key,
            bool(evicted),
            to_unsigned(pod),
            to_unsigned(container),
            _line(*line) if line[0] else None,
            _read_counters(base) if base else _NOTHING,
        )


def write_corrections(db: Connection, corrections: Iterable[Correction]) -> None:
    """Insert or replace corrections."""
    rows = ((to_signed(c.pod), to_signed(c.container), *c.account, _write_counters(c.counters)) for c in corrections)
    db.executemany("INSERT OR REPLACE INTO corrections VALUES (?, ?, ?, ?, ?, ?)", rows)


def read_corrections(db: Connection) -> Iterator[Correction]:
    """Return all corrections."""
    for pod, container, *account, counters in db.execute("SELECT * FROM corrections"):
        yield Correction(to_unsigned(pod), to_unsigned(container), _account(*account), _read_counters(counters))


def write_series(db: Connection, series: Iterable[KnownSeries]) -> None:
    """Insert or replace exported series."""
    rows = (
        (to_signed(s.pod), *s.line.account, s.line.destination, s.active, _write_counters(s.offset)) for s in series
    )
    db.executemany("INSERT OR REPLACE INTO series VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def read_series(db: Connection) -> Iterator[KnownSeries]:
    """Return all exported series."""
    for pod, verdict, reason, protocol, destination, active, start in db.execute("SELECT * FROM series"):
        line = _line(verdict, reason, protocol, destination)
        yield KnownSeries(to_unsigned(pod), line, bool(active), _read_counters(start))


def write_fact(db: Connection, name: str, value: str | int) -> None:
    """Insert or replace a single value."""
    db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value if isinstance(value, str) else str(value)))


def read_fact(db: Connection, name: str) -> str | None:
    """Return a single value, as text."""
    row = db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return row and str(row[0])


@lru_cache(maxsize=1024)
def _account(verdict: str, reason: str, protocol: str) -> Account:
    return Account(Verdict(verdict), Reason(reason), protocol)


@lru_cache(maxsize=4096)
def _line(verdict: str, reason: str, protocol: str, destination: str) -> Line:
    return Line(_account(verdict, reason, protocol), destination)


def _write_counters(counters: Counters) -> str:
    return json.dumps(counters, separators=(",", ":"))


def _read_counters(text: str) -> Counters:
    return Counters(*json.loads(text))
