"""Hostile text into values: ports, numbers, interfaces, words; and what every list has in common.

Promises: any string of any length becomes a value or a :class:`RejectedError`, in linear time,
and never half a list.  Only U+0020 is trimmed, only around entries; empty entries are ignored.
Refuses: everything that is not ASCII, signs, leading zeros, hexadecimal, and whatever else is
not the canonical spelling.  IP ranges are in :mod:`nodeagent.policy.ranges`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from nodeagent.errors import InputError, printable
from nodeagent.model import PortRange

HIGHEST_PORT = 65535
HIGHEST_ID = 2**32 - 2
"""The highest uid or gid; the next one means "no change" to the kernel."""


class RejectionReason(StrEnum):
    """Why a value was refused: the label of a counter, hence a closed set."""

    SYNTAX = "syntax"
    POLICY = "policy"
    SIZE = "size"


@dataclass(frozen=True, slots=True)
class Rejection:
    """A value that was refused as a whole.

    ``entry`` is escaped and cut.  ``position`` counts the places between commas from 1, empty
    ones included, as ``cut -d, -f`` does; None where the whole value is at fault.
    """

    key: str
    reason: RejectionReason
    entry: str
    message: str
    position: int | None = None


class RejectedError(InputError):
    """A value is not what its key allows."""

    def __init__(self, rejection: Rejection) -> None:
        """Say what *rejection* says."""
        super().__init__(rejection.message)
        self.rejection = rejection


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a value may hold; what is beyond is refused unread."""

    characters: int
    entries: int


ANNOTATION = Limits(characters=32 * 1024, entries=2048)
CONFIGURATION = Limits(characters=1024 * 1024, entries=100_000)
MOST_OWNERS = 64
"""Uids, gids or interfaces in one value: each is a rule that every connection has to pass, and more are nobody's."""


@dataclass(frozen=True, slots=True)
class Text:
    """A value as somebody wrote it, and the key to name in errors."""

    key: str
    value: str
    limits: Limits = ANNOTATION


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a list, trimmed, and its place in the list, from 1."""

    position: int
    text: str


def rejected(text: Text, entry: Entry, fault: str, reason: RejectionReason = RejectionReason.SYNTAX) -> RejectedError:
    """Return the error that says what is wrong with *entry*, in one line of ASCII."""
    shown = printable(entry.text)
    message = f"{text.key}: entry {entry.position}, '{shown}', {fault}"
    return RejectedError(Rejection(text.key, reason, shown, message, entry.position))


def read_entries(text: Text, most: int | None = None) -> tuple[Entry, ...]:
    """Split *text* at its commas, after its size has been checked; *most* allows fewer entries.

    >>> [entry.position for entry in read_entries(Text("key", "a, ,b"))]
    [1, 3]
    """
    _check_characters(text)
    trimmed = (Entry(n, part.strip(" ")) for n, part in enumerate(text.value.split(","), start=1))
    entries = tuple(entry for entry in trimmed if entry.text)
    limit = min(text.limits.entries, most or text.limits.entries)
    if len(entries) > limit:
        fault = f"is one of {len(entries)} entries: at most {limit} are allowed"
        raise rejected(text, entries[limit], fault, RejectionReason.SIZE)
    return entries


def _check_characters(text: Text) -> None:
    size, limit = len(text.value), text.limits.characters
    if size > limit:
        message = f"{text.key}: {size} characters: at most {limit} are allowed"
        shown = printable(text.value)
        raise RejectedError(Rejection(text.key, RejectionReason.SIZE, shown, message))


_NUMBER = r"(0|[1-9][0-9]{0,9})"
_NUMBER_RE = re.compile(_NUMBER)
_PORT_RE = re.compile(rf"{_NUMBER}(?:[-:]{_NUMBER})?")
_INTERFACE_RE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")

PORTS_ALLOWED = "use ports 0 to 65535 (443) or ranges of them (7000-7100), separated by commas"
NUMBERS_ALLOWED = f"use decimal numbers from 0 to {HIGHEST_ID}, separated by commas"
INTERFACES_ALLOWED = (
    "use names of at most 15 letters, digits, '_', '.' and '-' that begin with a letter or "
    "a digit (net1), separated by commas; there are no wildcards"
)


def parse_ports(text: Text) -> tuple[PortRange, ...]:
    """Return the port ranges, sorted and free of duplicates; they may overlap.

    >>> [str(ports) for ports in parse_ports(Text("key", "443, 7000:7100,80"))]
    ['80', '443', '7000-7100']
    """
    return tuple(sorted({_port_range(text, entry) for entry in read_entries(text)}))


def _port_range(text: Text, entry: Entry) -> PortRange:
    shape = _PORT_RE.fullmatch(entry.text)
    if not shape:
        raise rejected(text, entry, f"is not a port: {PORTS_ALLOWED}")
    first = int(shape[1])
    last = int(shape[2] or shape[1])
    if max(first, last) > HIGHEST_PORT:
        raise rejected(text, entry, f"is beyond the highest port: {PORTS_ALLOWED}")
    if last < first:
        raise rejected(text, entry, "ends before it begins: write the lower port first")
    return PortRange(first, last)


def parse_owners(text: Text) -> tuple[int, ...]:
    """Return uids or gids, sorted and free of duplicates; never none at all.

    >>> parse_owners(Text("key", "1338,1337,"))
    (1337, 1338)
    """
    entries = read_entries(text, MOST_OWNERS)
    if not entries:
        fault = f"names nobody, and the proxy's own traffic would loop: {NUMBERS_ALLOWED}"
        raise rejected(text, Entry(1, ""), fault)
    return tuple(sorted({_owner(text, entry) for entry in entries}))


def _owner(text: Text, entry: Entry) -> int:
    if not _NUMBER_RE.fullmatch(entry.text) or int(entry.text) > HIGHEST_ID:
        raise rejected(text, entry, f"is not a uid or gid: {NUMBERS_ALLOWED}")
    return int(entry.text)


def parse_interfaces(text: Text) -> tuple[str, ...]:
    """Return interface names, sorted and free of duplicates.

    Linux allows more (anything but ``/``, ``:``, white space, ``.`` and ``..``); what it allows
    beyond this alphabet means something to iptables or a shell.
    """
    entries = read_entries(text, MOST_OWNERS)
    for entry in entries:
        if not _INTERFACE_RE.fullmatch(entry.text):
            raise rejected(text, entry, f"is not an interface name: {INTERFACES_ALLOWED}")
    return tuple(sorted({entry.text for entry in entries}))


def parse_port(text: Text) -> int:
    """Return one port, 1 to 65535."""
    entry = _single(text)
    if not _NUMBER_RE.fullmatch(entry.text) or not 1 <= int(entry.text) <= HIGHEST_PORT:
        raise rejected(text, entry, "is not a port: use one number from 1 to 65535")
    return int(entry.text)


def parse_boolean(text: Text) -> bool:
    """Return what ``true`` or ``false`` says; no other spelling is one."""
    return parse_word(text, ("true", "false")) == "true"


def parse_word(text: Text, allowed: Iterable[str]) -> str:
    """Return the one of *allowed* that *text* is, blanks around it aside."""
    words = tuple(allowed)
    entry = _single(text)
    if entry.text not in words:
        raise rejected(text, entry, f"is not understood: use {' or '.join(words)}")
    return entry.text


def _single(text: Text) -> Entry:
    _check_characters(text)
    return Entry(1, text.value.strip(" "))
