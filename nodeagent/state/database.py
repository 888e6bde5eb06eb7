"""The file: opened exclusively, brought to the newest schema, emptied if it is of another boot."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nodeagent.errors import StateError
from nodeagent.state.rows import read_fact, write_fact
from nodeagent.state.schema import SCRIPTS, TABLES

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

_PRAGMAS: Final = (
    "PRAGMA locking_mode = EXCLUSIVE",  # no shared memory, which a full disk turns into SIGBUS
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = OFF",  # a SIGKILL loses nothing that was written; a power failure is another boot
)


def open_database(path: Path | None) -> tuple[sqlite3.Connection, str | None]:
    """Return the database at *path*, or one in memory, and why it is empty, if it is.

    Raises:
        StateError: a newer agent made it.
        sqlite3.Error: it cannot be opened, read or written; a plain DatabaseError: it is damaged.
    """
    db = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
    try:
        for pragma in _PRAGMAS:
            db.execute(pragma).fetchall()
        version = _version(db)
        with transaction(db):
            _upgrade(db, version)
            return db, _begin(db, version)
    except BaseException:
        db.close()
        raise


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Keep all that is written within, or none of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def empty(db: sqlite3.Connection) -> None:
    """Remove everything but the boot's id."""
    for table in TABLES:
        db.execute(f"DELETE FROM {table}")  # noqa: S608  # constants of ours
    write_fact(db, "boot_id", BOOT_ID.read_text("ascii").strip())


def _version(db: sqlite3.Connection) -> int:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > len(SCRIPTS):
        raise StateError(
            f"state of a newer agent (version {version}, this one knows {len(SCRIPTS)}): "
            "run that one, or remove the file and let counts jump once"
        )
    return version


def _upgrade(db: sqlite3.Connection, version: int) -> None:
    for script in SCRIPTS[version:]:
        for statement in script.split(";"):  # executescript() would commit
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {len(SCRIPTS)}")


def _begin(db: sqlite3.Connection, version: int) -> str | None:
    if read_fact(db, "boot_id") == BOOT_ID.read_text("ascii").strip():
        return None
    empty(db)
    return "what was kept is of another boot" if version else "nothing was kept so far"
