"""What outlives the agent: one SQLite file in a directory that a reboot empties, such as /run/nodeagent.

Promises: after a SIGKILL at any point a transaction is there in full or not at all; what was
kept under another boot is not found again; what could not be written is written in full as soon
as that works again.  No promise over a power failure: that is a reboot.  Refuses a second agent,
and a file that a newer agent wrote.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from nodeagent.errors import InputError, StateError, printable
from nodeagent.ledger import Changes, Memory
from nodeagent.model import PodRecord
from nodeagent.state.database import empty, open_database, transaction
from nodeagent.state.lock import Lock
from nodeagent.state.pods import PodRows
from nodeagent.state.rows import (
    read_corrections,
    read_fact,
    read_series,
    read_slots,
    write_changes,
    write_corrections,
    write_fact,
    write_series,
    write_slots,
)
from nodeagent.state.schema import to_signed

HIGHEST_NUMBER: Final = 1023
"""``PODS`` - 1 of bpf/flow.h."""

FILE: Final = "state.db"

_SAVES_PER_COLLECTION: Final = 64
_CONSEQUENCE: Final = "counts will jump when the agent restarts"


class Store:
    """Pods, their numbers and policies, and the ledger's memory.  For one thread at a time.

    ``memory`` is what was found at the opening, ``began`` why that is nothing, or None;
    ``problem`` says why the last write failed, or is None.
    """

    def __init__(self, db: sqlite3.Connection, lock: Lock | None, began: str | None) -> None:
        """Take over what :func:`open_database` opened."""
        self.began = began
        self.problem: str | None = None
        self._db, self._lock = db, lock
        self._pods = PodRows(db)
        self._numbers = self._pods.numbers()
        self.memory = self._read()
        self._records = dict(self.memory.records)
        self._ended: AbstractSet[int] = self.memory.ended.keys()
        self._saves = 0

    @classmethod
    def open(cls, directory: Path, wait: float = 0) -> Self:
        """Return the store in *directory*, made if need be; *wait* seconds for another agent to end.

        Raises:
            AnotherAgentError: another agent uses it.
            StateError: it cannot be read or written, or is a newer agent's: go on with :meth:`volatile`.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = Lock(directory, wait)
        except OSError as error:
            raise StateError(f"{directory}: {error.strerror}: {_CONSEQUENCE}") from error
        try:
            return cls._open_locked(directory / FILE, lock)
        except (OSError, sqlite3.Error) as error:
            lock.close()
            raise StateError(f"{directory / FILE}: {error}: {_CONSEQUENCE}") from error
        except BaseException:
            lock.close()
            raise

    @classmethod
    def volatile(cls) -> Self:
        """Return a store that forgets everything at its end."""
        return cls(open_database(None)[0], None, "nothing is kept")

    @classmethod
    def _open_locked(cls, path: Path, lock: Lock) -> Self:
        db: sqlite3.Connection | None = None
        try:
            db, began = open_database(path)
            return cls(db, lock, began)
        except sqlite3.OperationalError:
            raise
        except (sqlite3.DatabaseError, InputError, ValueError, TypeError, KeyError) as error:
            if db:
                db.close()
            path.replace(path.with_suffix(".damaged"))
            path.with_name(f"{path.name}-wal").unlink(missing_ok=True)
            return cls(open_database(path)[0], lock, f"what was kept is damaged: {printable(str(error))}")

    def close(self) -> None:
        """Give the file and the lock back."""
        self._db.close()
        if self._lock:
            self._lock.close()

    # -- numbers

    @property
    def numbers(self) -> Mapping[int, int]:
        """The numbers that are taken, by pod id; also those of pods whose slots the kernel still holds."""
        return self._numbers

    def number(self, pod: int) -> int:
        """Return the pod's number, a free one if it has none yet.  :meth:`save` keeps it.

        Raises:
            StateError: all are taken: count this pod later.
        """
        if pod not in self._numbers:
            taken = set(self._numbers.values())
            free = next((number for number in range(1, HIGHEST_NUMBER + 1) if number not in taken), None)
            if free is None:
                raise StateError(f"all {HIGHEST_NUMBER} numbers of pods are taken: count pod {pod} when one has gone")
            self._numbers[pod] = free
        return self._numbers[pod]

    def adopt(self, held: Mapping[int, int]) -> None:
        """Take note of the numbers that the kernel holds for pods: where this state began anew, they are not free."""
        taken = set(self._numbers.values())
        for pod, number in held.items():
            if pod not in self._numbers and number not in taken:
                self._numbers[pod] = number

    # -- keeping

    def save(self, records: Iterable[PodRecord]) -> None:
        """Keep records of living pods; before the kernel is told of them, or of a new epoch.

        Raises:
            StateError: it cannot be written: go on, and say so.
        """
        records = list(records)
        self._records |= {record.id: record for record in records}
        self._ended -= {record.id for record in records}
        with self._writing():
            for record in records:
                self._pods.write(record, self.number(record.id))
            self._saves += len(records)
            if self._saves >= _SAVES_PER_COLLECTION:
                self._pods.collect()
                self._saves = 0

    def commit(self, changes: Changes, memory: Callable[[], Memory]) -> None:
        """Keep what an observation changed; before anybody sees its numbers.

        *memory* is :meth:`Ledger.memory`, asked only after an earlier write failed.

        Raises:
            StateError: it cannot be written: go on, and say so.
        """
        for pod in changes.forgotten:
            self._records.pop(pod, None)
        self._ended = (self._ended | changes.ended.keys()) - {pod for pod, at in changes.ended.items() if at is None}
        vacated = changes.vacated - (self._records.keys() - self._ended)  # it may have come back meanwhile
        for pod in vacated & self._numbers.keys():
            del self._numbers[pod]
        if self.problem:
            with self._writing(mends=True):
                self._rewrite(memory())
        elif changes:
            with self._writing(mends=True):
                write_changes(self._db, changes)
                if vacated:
                    self._pods.vacate(vacated)
                    self._pods.remove(vacated - self._records.keys())
                    self._pods.collect()

    @contextmanager
    def _writing(self, *, mends: bool = False) -> Iterator[None]:
        try:
            with transaction(self._db):
                yield
        except sqlite3.Error as error:
            self._pods.forget_ids()
            self.problem = f"state cannot be written: {error}: {_CONSEQUENCE}"
            raise StateError(self.problem) from error
        if mends:
            self.problem = None

    def _rewrite(self, memory: Memory) -> None:
        empty(self._db)
        self._pods.forget_ids()
        records = {**memory.records, **self._records}
        for pod, record in records.items():
            self._pods.write(record, self._numbers.get(pod) if pod in self._ended else self.number(pod))
        self._pods.write_numbers(self._numbers, self._numbers.keys() - records.keys())
        ended = [(at, to_signed(pod)) for pod, at in memory.ended.items()]
        self._db.executemany("UPDATE pods SET ended = ? WHERE id = ?", ended)
        write_slots(self._db, memory.slots)
        write_corrections(self._db, memory.corrections)
        write_series(self._db, memory.series)
        write_fact(self._db, "dropped_bytes", memory.dropped_bytes)

    def _read(self) -> Memory:
        return Memory(
            slots=tuple(read_slots(self._db)),
            corrections=tuple(read_corrections(self._db)),
            series=tuple(read_series(self._db)),
            records=self._pods.records(),
            ended=self._pods.ended(),
            forgotten=self._pods.forgotten(),
            dropped_bytes=int(read_fact(self._db, "dropped_bytes") or 0),
        )
