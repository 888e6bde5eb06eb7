"""Which destinations get series of their own: the top ones of a pod, few changes, bounded on the node.

A series that was exported once stays, frozen if need be, until its pod goes.  So a destination
loses its place only to one with twice its traffic, and a pod may do that only so often.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from nodeagent.ledger.book import Book

HYSTERESIS: Final = 2
"""How many times a destination's traffic another one must have to take its place."""

OTHERS: Final = 4
"""Series of ``other`` that each pod has room for in any case: an account has one."""


@dataclass(frozen=True)
class Limits:
    """How many destinations are told apart.

    ``series_limit`` counts samples; each set of labels has one in each of ``families`` metrics.
    """

    top_destinations: int = 15
    series_limit: int = 10_000
    families: int = 2

    @property
    def label_sets(self) -> int:
        """Sets of labels that fit."""
        return self.series_limit // self.families


def choose(scores: Mapping[str, int], active: AbstractSet[str], top: int, swaps: int) -> set[str]:
    """Return the *top* destinations to be exported, given those that are; at most *swaps* lose their place.

    >>> sorted(choose({"a": 9, "b": 8, "c": 15, "d": 40}, {"a", "b"}, top=2, swaps=5))
    ['a', 'd']
    """
    best = sorted(scores, key=lambda name: (-scores[name], name))
    kept = sorted(active, key=lambda name: (-scores.get(name, 0), name))[:top]
    waiting = [name for name in best if name not in active]
    kept += waiting[: top - len(kept)]
    kept_before = [name for name in kept if name in active]
    for challenger in waiting[len(kept) - len(kept_before) :]:
        weakest = kept_before[-1] if kept_before else None
        if not swaps or weakest is None or scores[challenger] <= HYSTERESIS * scores.get(weakest, 0):
            break
        kept.remove(kept_before.pop())
        kept.append(challenger)
        swaps -= 1
    return set(kept)


def used(book: Book) -> int:
    """Return the sets of labels that *book* takes, or may take without asking."""
    return book.series_count + max(OTHERS, len(book.others))


def export(book: Book, limits: Limits, room: int) -> int:
    """Promote and demote the book's destinations; at most *room* new series.  Return how many are new."""
    active, top = book.active(), limits.top_destinations
    frozen = {line.destination for line, _ in book.series()} - active
    wanted = choose(book.scores(), active, top, swaps=max(0, top - len(frozen)))
    new = 0
    for line, group in list(book.groups.items()):
        if group.active and line.destination not in wanted:
            book.demote(line)
        elif line.destination in wanted and not group.active and (group.offset is not None or new < room):
            new += group.offset is None
            book.promote(line)
    return new
