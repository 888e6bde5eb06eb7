"""What the ledger shows: flows, totals and series, as plain rows."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from nodeagent.ledger.book import Book, HeldSlot
from nodeagent.ledger.counts import ZERO, plus
from nodeagent.ledger.memory import Account
from nodeagent.ledger.naming import OTHER, protocol_name
from nodeagent.model import Counters, FlowKind, Reason


class Flow(NamedTuple):
    """One row of ``nodeagent flows``; ``_asdict()`` is its JSON.

    ``container`` is None where nobody knows it; ``address`` and ``port`` are None where they were
    not told apart.  Bytes are IP bytes, ``payload`` what the application sent, retransmits included.
    """

    namespace: str
    pod: str
    container: str | None
    destination: str
    address: str | None
    port: int | None
    protocol: str
    verdict: str
    reason: str
    connections: int
    packets: int
    bytes: int
    payload: int
    received_bytes: int


class Total(NamedTuple):
    """What a pod's egress comes to, per verdict, reason and protocol; never capped."""

    namespace: str
    pod: str
    account: Account
    counters: Counters


class SeriesValue(NamedTuple):
    """One exported series; ``destination`` is ``other`` for what has none of its own."""

    namespace: str
    pod: str
    destination: str
    account: Account
    counters: Counters


EVER: Final = float("-inf")
"""Before anything was counted."""

_FlowId = tuple[str | None, str, str | None, int | None, str, str, str]


def flows_of(book: Book, slots: Iterable[HeldSlot], since: float) -> Iterator[Flow]:
    """Return one row for each container, destination, address, port, protocol, verdict and reason.

    Only those that counted anything at *since* or later; what has no slot any more did so at no known time.
    """
    sums: dict[_FlowId, Counters] = {}
    active = set[_FlowId]()
    for held in slots:
        if held.line:
            identity = _identify(book, held)
            _add(sums, identity, held.level)
            if held.idle_since >= since:
                active.add(identity)
    for (account, container), counters in book.corrections.items():
        container_name = book.record.containers.get(container)
        _add(sums, (container_name, OTHER, None, None, account.protocol, account.verdict, account.reason), counters)
    name = book.record.name
    for identity, c in sums.items():
        if c != ZERO and (identity in active or since == EVER):
            container_name, destination, address, port, protocol, verdict, reason = identity
            where = (name.namespace, name.name, container_name, destination, address, port)
            yield Flow(
                *where, protocol, verdict, reason, c.connections, c.packets, c.bytes, c.payload, c.received_bytes
            )


def _add(sums: dict[_FlowId, Counters], identity: _FlowId, counters: Counters) -> None:
    sums[identity] = plus(sums.get(identity, ZERO), counters)


def _identify(book: Book, held: HeldSlot) -> _FlowId:
    key, line = held.slot.key, held.line
    assert line is not None  # noqa: S101  # the caller's test, for the type checker
    single = key.kind is FlowKind.FLOW and not held.evicted
    container = book.record.containers.get(key.container)
    address, port = (str(key.destination), key.port) if single else (None, None)
    account = line.account
    return container, line.destination, address, port, protocol_name(key.protocol), account.verdict, account.reason


def shown_books(books: Mapping[int, Book]) -> list[Book]:
    """Return the books whose numbers are exported: of pods of one name the living one, then the newest."""
    shown: dict[tuple[str, str], Book] = {}
    for book in books.values():
        name = book.record.name.namespace, book.record.name.name
        other = shown.get(name)
        if other is None or (other.ended is not None, -other.arrived) > (book.ended is not None, -book.arrived):
            shown[name] = book
    return list(shown.values())


def totals_of(books: Iterable[Book]) -> list[Total]:
    """Return the totals of all accounts."""
    names = ((book.record.name, book) for book in books)
    return [
        Total(name.namespace, name.name, account, counters)
        for name, book in names
        for account, counters in book.totals().items()
        if not _is_spare(account, counters)
    ]


def _is_spare(account: Account, counters: Counters) -> bool:
    """Say whether this is of a slot that was reserved in case that others run out, and that nobody needed."""
    return account.reason is Reason.OVERFLOW and counters == ZERO


def series_of(books: Iterable[Book], room: int) -> list[SeriesValue]:
    """Return at most *room* exported series; a pod's add up to its totals unless ``other`` found no room."""
    found: list[SeriesValue] = []
    for book in books:
        name = book.record.name
        for line, group in book.series():
            found.append(SeriesValue(name.namespace, name.name, line.destination, line.account, group.value))
    for book in books:
        name = book.record.name
        for account, counters in book.others.items():
            if not _is_spare(account, counters):
                found.append(SeriesValue(name.namespace, name.name, OTHER, account, counters))
    return found[:room]
