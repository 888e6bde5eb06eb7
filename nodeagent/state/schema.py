"""The tables, version by version.  A file of version n is brought to the newest by the scripts from n on.

Ids of pods and containers are unsigned 64 bits in the kernel and signed here
(:func:`to_signed`).  ``base``, ``counters`` and ``start`` are JSON lists of counters; ``start``
is a series' offset.
"""

from typing import Final

SCRIPTS: Final = (
    """
    CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE policies (id TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE pods (
        id INTEGER PRIMARY KEY,
        number INTEGER UNIQUE,            -- NULL: it has ended, and its number may be another pod's
        record TEXT,                      -- NULL: only its number is taken
        policy TEXT,
        ended REAL,
        forgotten INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE epochs (
        pod INTEGER NOT NULL, epoch INTEGER NOT NULL, policy TEXT NOT NULL, PRIMARY KEY (pod, epoch)
    ) WITHOUT ROWID;
    CREATE TABLE slots (
        position INTEGER PRIMARY KEY,
        generation INTEGER NOT NULL,
        key TEXT NOT NULL,
        evicted INTEGER NOT NULL,
        pod INTEGER NOT NULL,
        container INTEGER NOT NULL,
        verdict TEXT, reason TEXT, protocol TEXT, destination TEXT,    -- NULL: loopback
        base TEXT
    );
    CREATE TABLE corrections (
        pod INTEGER NOT NULL, container INTEGER NOT NULL,
        verdict TEXT NOT NULL, reason TEXT NOT NULL, protocol TEXT NOT NULL,
        counters TEXT NOT NULL,
        PRIMARY KEY (pod, container, verdict, reason, protocol)
    ) WITHOUT ROWID;
    CREATE TABLE series (
        pod INTEGER NOT NULL,
        verdict TEXT NOT NULL, reason TEXT NOT NULL, protocol TEXT NOT NULL, destination TEXT NOT NULL,
        active INTEGER NOT NULL,
        start TEXT NOT NULL,
        PRIMARY KEY (pod, verdict, reason, protocol, destination)
    ) WITHOUT ROWID;
    """,
)
"""Append; never edit what was released."""

TABLES: Final = ("facts", "policies", "pods", "epochs", "slots", "corrections", "series")

_SIGN: Final = 1 << 63


def to_signed(number: int) -> int:
    """Return an unsigned number of 64 bits as SQLite can hold it.

    >>> to_signed(7), to_signed(2**63 + 5)
    (7, -9223372036854775803)
    """
    return number - 2 * _SIGN if number >= _SIGN else number


def to_unsigned(number: int) -> int:
    """Return the kernel's number.

    >>> to_unsigned(to_signed(2**63 + 5)) == 2**63 + 5
    True
    """
    return number + 2 * _SIGN if number < 0 else number
