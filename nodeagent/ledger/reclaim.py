"""Which slots the kernel may take back, and where their counts go.

Reclaiming takes three steps, each of which may be the last one before a SIGKILL: the agent has
the kernel *evict* what :func:`victims` says; the next observation finds these slots evicted and
books them to ``other``, and is kept; then the kernel *releases* what :func:`releases` says.

What a pod that has ended leaves behind is not folded in the kernel, where room is for living pods: once
no program adds to it any more (:meth:`Ledger.settle`), the ledger takes it over, keeps it, and has it dropped.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from nodeagent.ledger.book import Book, HeldSlot
from nodeagent.ledger.naming import OTHER
from nodeagent.ledger.reasons import NUMBERS
from nodeagent.model import FlowKey, FlowKind

LOW: Final = 0.10
"""Below this share of free slots some are taken back, until the double is free."""

IDLE: Final = 60.0
"""Seconds without a packet after which a slot may be taken back."""

SETTLED: Final = 0.1
"""Seconds after which no CPU is still counting into an evicted slot."""


class Release(NamedTuple):
    """A slot to free; its counters go to the folded slot ``target``, or nowhere if that is None."""

    position: int
    generation: int
    target: FlowKey | None


def fold_target(held: HeldSlot) -> FlowKey | None:
    """Return the key of the folded slot that takes this slot's counters; None if no book has it."""
    if held.line is None:
        return None
    key = held.slot.key
    return FlowKey(
        pod=key.pod,
        container=key.container,
        destination=IPv4Address(0),
        port=NUMBERS[held.line.account.reason],
        protocol=key.protocol,
        ifindex=0,
        epoch=0,
        flow_class=key.flow_class,
        kind=FlowKind.FOLDED,
    )


def victims(slots: Iterable[HeldSlot], books: Mapping[int, Book], wanted: int, now: float) -> list[HeldSlot]:
    """Return at least *wanted* slots to evict, if so many are idle: first what has no series, the oldest first.

    A slot that would be the only one in its folded slot is left alone: nothing would be won.
    """
    candidates = []
    targets: Counter[FlowKey | None] = Counter()
    for held in slots:
        key = held.slot.key
        if key.kind is FlowKind.FOLDED:
            targets[key] += 1
        elif key.kind is FlowKind.FLOW and not held.evicted and now - held.idle_since >= IDLE:
            candidates.append((_is_exported(held, books), held.idle_since, held.slot.position, held))
            targets[fold_target(held)] += 1
    worth = (held for *_, held in sorted(candidates, key=lambda c: c[:3]) if targets[fold_target(held)] > 1)
    return [held for held, _ in zip(worth, range(wanted), strict=False)]


def _is_exported(held: HeldSlot, books: Mapping[int, Book]) -> bool:
    book = books.get(held.slot.key.pod)
    if book is None or held.line is None or held.line.destination == OTHER:
        return False
    return book.groups[held.line].active


def releases(evicted: Iterable[HeldSlot], now: float) -> list[Release]:
    """Return those of the *evicted* slots that were found so long enough ago."""
    return [
        Release(held.slot.position, held.slot.generation, fold_target(held))
        for held in evicted
        if held.evicted_since is not None and now - held.evicted_since >= SETTLED
    ]
