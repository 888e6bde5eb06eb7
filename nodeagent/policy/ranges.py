"""IP range lists: hostile text into networks, and how wide they are together.

Promises what :mod:`nodeagent.policy.grammar` promises.  Refuses what the standard library
accepts and no kernel rule means: netmasks, leading zeros, zone ids, dotted quads in IPv6, and
IPv4-mapped addresses in any spelling.  Never looks up a name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import islice

from nodeagent.errors import printable
from nodeagent.model import Family, Network, Ranges, Sourced
from nodeagent.policy.grammar import (
    Entry,
    RejectedError,
    RejectionReason,
    Text,
    read_entries,
    rejected,
)

ALLOWED = "use CIDRs (10.0.0.0/8, 2001:db8::/32), addresses or @name, separated by commas"
NAME_RE = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")
"""What a named range may be called: it becomes the label of a metric."""

_RANGE_RE = re.compile(r"([0-9.]{7,15}|[0-9A-Fa-f:]{2,39})(?:/(0|[1-9][0-9]{0,2}))?")
_SHOWN_NAMES = 10

Named = Mapping[str, tuple[Network, ...]]
"""The named ranges of the cluster configuration."""


@dataclass(frozen=True, slots=True)
class ListedRange:
    """A network, the entry it was written as, and the named range that brought it, if any."""

    network: Network
    entry: Entry
    name: str | None = None


@dataclass(frozen=True, slots=True)
class RangeList:
    """A range list as written; ``masked`` holds the entries that had host bits."""

    items: tuple[ListedRange, ...] = ()
    every: bool = False
    masked: tuple[ListedRange, ...] = ()


class RangeError(ValueError):
    """A text is not an IP range; the message goes on after the text's name."""


def parse_range(text: str) -> tuple[Network, bool]:
    """Return the network that *text* is, and whether host bits had to be masked off.

    >>> parse_range("10.1.2.3/8")
    (IPv4Network('10.0.0.0/8'), True)

    Raises:
        RangeError: what is wrong; what would be right is for the caller to say.
    """
    shape = _RANGE_RE.fullmatch(text)
    if not shape:
        raise RangeError(_fault(text))
    try:
        address = ip_address(shape[1])
    except ValueError as error:
        raise RangeError("does not begin with an IP address") from error
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        raise RangeError("is IPv4-mapped and matches nothing on the wire")
    length = int(shape[2] or address.max_prefixlen)
    host_bits = address.max_prefixlen - length
    if host_bits < 0:
        raise RangeError(f"has a prefix longer than {address.max_prefixlen}")
    base = int(address) >> host_bits << host_bits
    return _network(address.version, base, length), base != int(address)


def _network(version: int, base: int, length: int) -> Network:
    return IPv4Network((base, length)) if version == Family.V4 else IPv6Network((base, length))


def _fault(text: str) -> str:
    """Say what *text* looks like, so that the message helps."""
    if not text.isascii():
        return "is not ASCII"
    if "*" in text:
        return "is not a range ('*' stands for every address, alone, and in an include only)"
    if "%" in text:
        return "has a zone, which says nothing about a destination"
    if ":" in text and "." in text:
        return "mixes IPv4 and IPv6"
    return "is not an IP range"


def parse_ranges(text: Text, named: Named, *, wildcard: bool) -> RangeList:
    """Return the ranges of *text* in the order written; ``*`` only where *wildcard* allows it.

    Raises:
        RejectedError: an entry is no range, its name is not in *named*, or there are too many.
    """
    entries = read_entries(text)
    if wildcard and [entry.text for entry in entries] == ["*"]:
        return RangeList(every=True)
    items: list[ListedRange] = []
    masked: list[ListedRange] = []
    # Each name is expanded once: 2,048 times the same name must not be 2,048 times its ranges.
    expanded: set[str] = set()
    for entry in entries:
        if entry.text.startswith("@"):
            if entry.text not in expanded:
                expanded.add(entry.text)
                items.extend(_by_name(text, entry, named))
            continue
        item, had_host_bits = _listed(text, entry)
        items.append(item)
        if had_host_bits:
            masked.append(item)
    return RangeList(tuple(items), masked=tuple(masked))


def _listed(text: Text, entry: Entry) -> tuple[ListedRange, bool]:
    try:
        network, had_host_bits = parse_range(entry.text)
    except RangeError as error:
        raise rejected(text, entry, f"{error}: {ALLOWED}") from error
    return ListedRange(network, entry), had_host_bits


def _by_name(text: Text, entry: Entry, named: Named) -> Iterator[ListedRange]:
    name = entry.text.removeprefix("@")
    if name not in named:
        known = ", ".join(f"@{known}" for known in islice(sorted(named), _SHOWN_NAMES))
        more = f" and {len(named) - _SHOWN_NAMES} more" if len(named) > _SHOWN_NAMES else ""
        fault = "is not a named range of the cluster configuration: "
        raise rejected(text, entry, fault + (f"known are {known}{more}" if known else "it has none"))
    return (ListedRange(network, entry, name) for network in named[name])


def sort_ranges(items: Iterable[Sourced[Network]]) -> tuple[Sourced[Network], ...]:
    """Return *items* in canonical order, without duplicates; among equals the first one stays."""
    unique: dict[Network, Sourced[Network]] = {}
    for item in items:
        unique.setdefault(item.value, item)
    return tuple(sorted(unique.values(), key=_canonical))


def _canonical(item: Sourced[Network]) -> tuple[int, int, int]:
    return item.value.version, int(item.value.network_address), item.value.prefixlen


Interval = tuple[int, int]


def merge_intervals(intervals: Iterable[Interval]) -> Iterator[Interval]:
    """Yield the union of sorted *intervals* as disjoint ones that do not touch, lazily.

    >>> list(merge_intervals([(0, 5), (2, 3), (6, 9), (11, 12)]))
    [(0, 9), (11, 12)]
    """
    first, last = -1, -2
    for start, end in intervals:
        if start > last + 1:
            if last >= first:
                yield first, last
            first, last = start, end
        else:
            last = max(last, end)
    if last >= first:
        yield first, last


def addresses(ranges: Iterable[Network], family: Family) -> Iterator[Interval]:
    """Yield the address intervals of one family, in the order of *ranges*."""
    for network in ranges:
        if network.version == family:
            first = int(network.network_address)
            yield first, first | ((1 << (family.bits - network.prefixlen)) - 1)


def address_union(ranges: Ranges, family: Family) -> Iterator[Interval]:
    """Yield the addresses of one family that *ranges* hold, as disjoint intervals."""
    if ranges.every:
        return iter([(0, (1 << family.bits) - 1)])
    return merge_intervals(addresses(ranges, family))


def covers(outer: Iterable[Interval], inner: Iterable[Interval]) -> bool:
    """Say whether every *inner* interval lies in an *outer* one; both as merged.

    Stops at the first that does not, so that a list of thousands mostly costs one look.
    """
    blocks = iter(outer)
    block = next(blocks, None)
    for first, last in inner:
        while block and block[1] < first:
            block = next(blocks, None)
        if not block or not block[0] <= first <= last <= block[1]:
            return False
    return True


def check_width(text: Text, listed: RangeList, widest: Mapping[Family, int]) -> None:
    """Refuse ranges whose union holds a block wider than *widest* allows.

    *widest* gives the shortest allowed prefix per family; 0 allows everything.  The union is
    judged, not each entry: two halves of the Internet are the Internet.

    Raises:
        RejectedError: the reason is ``policy``.
    """
    for family, length in widest.items():
        if length and (error := _too_wide(text, listed, family, length)):
            raise error


def _too_wide(text: Text, listed: RangeList, family: Family, length: int) -> RejectedError | None:
    spans = sorted(addresses((item.network for item in listed.items), family))
    for first, last in merge_intervals(spans):
        if block := _widest_block(first, last, family, length):
            inside = (item for item in listed.items if _overlap(item.network, block))
            culprit = min(inside, key=lambda item: item.network.prefixlen)
            fault = f"is part of {block}, and no exclusion may be wider than a /{length} here"
            return rejected(text, culprit.entry, fault, RejectionReason.POLICY)
    return None


def _widest_block(first: int, last: int, family: Family, length: int) -> Network | None:
    """Return the widest aligned block from *first* to *last*, if it is wider than *length*."""
    for shorter in range(length):
        size = 1 << (family.bits - shorter)
        start = -(-first // size) * size
        if start + size - 1 <= last:
            return _network(family, start, shorter)
    return None


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def describe_masked(listed: RangeList) -> tuple[str, ...]:
    """Return a warning for each entry that had host bits, for people."""
    return tuple(
        f"'{printable(item.entry.text)}' was read as {item.network}: host bits are masked off" for item in listed.masked
    )
