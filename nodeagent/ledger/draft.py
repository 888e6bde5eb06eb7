"""Collects what one observation changed, until it is handed out to be kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nodeagent.ledger.book import Book, HeldSlot
from nodeagent.ledger.memory import Changes


@dataclass(slots=True)
class Draft:
    """Changes in the making; slots are named by their position."""

    slots: set[int] = field(default_factory=set)
    free: set[int] = field(default_factory=set)
    ended: dict[int, float | None] = field(default_factory=dict)
    forgotten: set[int] = field(default_factory=set)
    vacated: set[int] = field(default_factory=set)
    dropped: bool = False

    def release(self, position: int) -> None:
        """Note that a position is in no book any more."""
        self.slots.discard(position)
        self.free.add(position)

    def finish(self, held: Mapping[int, HeldSlot], books: Mapping[int, Book], dropped_bytes: int) -> Changes:
        """Return the changes."""
        corrections, series = [], []
        for book in books.values():
            more_corrections, more_series = book.changed()
            corrections += more_corrections
            series += more_series
        return Changes(
            slots=tuple(held[position].known() for position in sorted(self.slots)),
            free=tuple(sorted(self.free)),
            corrections=tuple(corrections),
            series=tuple(series),
            ended=dict(self.ended),
            forgotten=frozenset(self.forgotten),
            vacated=frozenset(self.vacated),
            dropped_bytes=dropped_bytes if self.dropped else None,
        )
