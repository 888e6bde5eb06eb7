"""How a netns' legacy tables stood when they were last read in full, to be compared with what stands now.

Comparing is one AND and one comparison for each table, whatever their counters say by then.  The tables
of most pods of a node are the same; so are what is kept of them.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from nodeagent.legacy.entries import Table, mask, steady_bits
from nodeagent.model import Family

_LARGEST: Final = 16 << 10
"""Bytes of a table of which a mark is made: who fills larger ones must not fill our memory as well."""
_KEPT: Final = 256

_Shape: TypeAlias = tuple[Family, str, int, tuple[int, ...], tuple[int, ...], int]


class Mark(NamedTuple):
    """One table: all but its entries, the bits of these that nobody but a writer changes, and what they were."""

    shape: _Shape
    size: int
    bits: int
    entries: int


def mark_of(tables: Iterable[Table]) -> tuple[Mark, ...] | None:
    """Return the marks of *tables*; None if one of them is too large."""
    tables = tuple(tables)
    if any(len(table.entries) > _LARGEST for table in tables):
        return None
    return tuple(_mark(_shape(table), mask(table.family, table.entries)) for table in tables)


def is_as_marked(tables: Sequence[Table], marks: Sequence[Mark]) -> bool:
    """Say whether *tables* treat every packet as those did that *marks* were made of."""
    return len(tables) == len(marks) and all(
        mark.size == len(table.entries)
        and int.from_bytes(table.entries, "little") & mark.bits == mark.entries
        and mark.shape == _shape(table)
        for table, mark in zip(tables, marks, strict=True)
    )


def _shape(table: Table) -> _Shape:
    return table.family, table.name, table.valid_hooks, table.hook_entry, table.underflow, table.number


@lru_cache(_KEPT)
def _mark(shape: _Shape, masked: bytes) -> Mark:
    """Return one object for all tables that are equal."""
    return Mark(shape, len(masked), steady_bits(shape[0], masked), int.from_bytes(masked, "little"))
