"""What ``top`` shows: which flows, in which order, in which columns, and what keys do about it.  No terminal here.

A :class:`Chosen` is all that a user has chosen; a key makes another one of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from nodeagent.cli.output import size
from nodeagent.errors import printable
from nodeagent.ledger import LEAKS
from nodeagent.model import Verdict

Flow: TypeAlias = Mapping[str, Any]
Line: TypeAlias = Sequence[tuple[str, str]]
"""Pieces of text, each with a style of :mod:`nodeagent.cli.output`; the empty one is plain."""

IDENTITY = ("namespace", "pod", "container", "destination", "address", "port", "protocol", "verdict", "reason")
SORTS = ("rate", "bytes", "received_bytes", "payload", "connections", "packets", "pod", "destination", "reason")
KINDS = ("all", "leaks", "bypassed", "intercepted", "proxy")

HELP = (
    "q      quit",
    "s S    sort by the next column, by the one before",
    "r      reverse the order",
    "/      show what contains a text; Enter keeps it, Escape ends it",
    "f      all, leaks, bypassed, intercepted, proxy",
    "p      pause, and go on; so does the space bar",
    "j k    one line down, up; so do the arrows; PgUp PgDn a page; Home End",
    "?      this; any key ends it",
)

_BAR = "q quit  s sort  r reverse  / filter  f kind  p pause  ? help"
_NUMBERS = frozenset(SORTS[:6])
_LONGEST_FILTER = 60
_ESCAPE, _ENTER, _BACKSPACE = "\x1b", ("\n", "\r", "KEY_ENTER"), ("\x7f", "\b", "KEY_BACKSPACE")


class Ranked(NamedTuple):
    """A flow, and how fast it grows, in bytes a second; None before there are two looks at it."""

    flow: Flow
    rate: float | None


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the user has chosen; ``first`` is the number of the first flow on the screen."""

    sort: str = "rate"
    descending: bool = True
    text: str = ""
    typing: bool = False
    kind: str = "all"
    paused: bool = False
    help: bool = False
    first: int = 0


class Column(NamedTuple):
    """One column: ``rank`` says which goes first where the terminal is narrow, the highest."""

    title: str
    rank: int
    right: bool = False


class Rates:
    """Bytes a second of each flow, between the last two looks."""

    def __init__(self) -> None:
        self._bytes: dict[tuple[Any, ...], int] = {}
        self._at: float | None = None

    def rank(self, flows: Iterable[Flow], now: float) -> list[Ranked]:
        """Return *flows*, seen at *now* seconds, with their rates; one that is new grew from nothing."""
        flows = list(flows)
        span = None if self._at is None else now - self._at
        ranked = [Ranked(flow, self._rate(flow, span)) for flow in flows]
        self._bytes, self._at = {identity(flow): flow["bytes"] for flow in flows}, now
        return ranked

    def _rate(self, flow: Flow, span: float | None) -> float | None:
        if not span:
            return None
        grown: int = flow["bytes"] - self._bytes.get(identity(flow), 0)
        return max(0.0, grown / span)


def identity(flow: Flow) -> tuple[Any, ...]:
    """Return what no other flow has, on any node."""
    return flow.get("node"), *(flow[name] for name in IDENTITY)


# -- keys -------------------------------------------------------------------------------------


def press(chosen: Chosen, key: str, page: int, flows: int) -> Chosen | None:
    """Return what is chosen after *key*, on a screen of *page* lines with *flows* to show; None to quit.

    >>> press(Chosen(), "s", 10, 3).sort, press(Chosen(), "q", 10, 3)
    ('bytes', None)
    """
    if chosen.help:
        return replace(chosen, help=False)
    if chosen.typing:
        return _type(chosen, key)
    if key == "q":
        return None
    if steps := _STEPS.get(key):
        pages, lines = steps
        first = chosen.first + pages * page + lines
        return replace(chosen, first=min(max(0, first), max(0, flows - page)))
    return _choose(chosen, key)


_STEPS = {
    "KEY_UP": (0, -1),
    "k": (0, -1),
    "KEY_DOWN": (0, 1),
    "j": (0, 1),
    "KEY_PPAGE": (-1, 0),
    "KEY_NPAGE": (1, 0),
    "KEY_HOME": (0, -1_000_000_000),
    "g": (0, -1_000_000_000),
    "KEY_END": (0, 1_000_000_000),
    "G": (0, 1_000_000_000),
}
"""Pages and lines that a key goes down."""


def _choose(chosen: Chosen, key: str) -> Chosen:
    match key:
        case "s" | "S":
            name = _after(SORTS, chosen.sort, 1 if key == "s" else -1)
            return replace(chosen, sort=name, descending=name in _NUMBERS, first=0)
        case "r":
            return replace(chosen, descending=not chosen.descending, first=0)
        case "f":
            return replace(chosen, kind=_after(KINDS, chosen.kind, 1), first=0)
        case "\x1b":
            return replace(chosen, text="", first=0)
    return _toggle(chosen, key)


def _toggle(chosen: Chosen, key: str) -> Chosen:
    if key in ("p", " "):
        return replace(chosen, paused=not chosen.paused)
    return replace(chosen, typing=chosen.typing or key == "/", help=key in ("?", "h"))


def _after(names: Sequence[str], name: str, step: int) -> str:
    return names[(names.index(name) + step) % len(names)]


def _type(chosen: Chosen, key: str) -> Chosen:
    if key in _ENTER:
        return replace(chosen, typing=False)
    if key == _ESCAPE:
        return replace(chosen, typing=False, text="", first=0)
    if key in _BACKSPACE:
        return replace(chosen, text=chosen.text[:-1], first=0)
    if len(key) == 1 and key.isascii() and key.isprintable() and len(chosen.text) < _LONGEST_FILTER:
        return replace(chosen, text=chosen.text + key, first=0)
    return chosen


# -- what is shown ------------------------------------------------------------------------------


def select(flows: Iterable[Ranked], chosen: Chosen) -> list[Ranked]:
    """Return the flows that are chosen, in the chosen order; equal ones stay as they are."""
    text = chosen.text.lower()
    found = [r for r in flows if _is_kind(r.flow, chosen.kind) and (not text or text in _words(r.flow))]
    found.sort(key=lambda ranked: _sort_key(ranked, chosen.sort), reverse=chosen.descending)
    return found


def _is_kind(flow: Flow, kind: str) -> bool:
    return kind == "all" or flow["verdict"] == kind or (kind == "leaks" and flow["reason"] in LEAKS)


def _words(flow: Flow) -> str:
    pod = f"{flow['namespace']}/{flow['pod']}"
    return " ".join(str(flow.get(name)) for name in ("node", *IDENTITY[2:])).lower() + f" {pod.lower()}"


def _sort_key(ranked: Ranked, sort: str) -> Any:  # noqa: ANN401  # numbers or texts, of one kind for each field
    flow = ranked.flow
    if sort == "rate":
        return ranked.rate or 0.0, flow["bytes"]
    return (flow["namespace"], flow["pod"]) if sort == "pod" else flow[sort]


def screen(flows: Sequence[Ranked], chosen: Chosen, state: str, height: int, width: int) -> list[Line]:
    """Return the lines of a screen; *state* is a sentence about the agent, empty where all is well."""
    if chosen.help:
        return [((line, ""),) for line in HELP[:height]]
    found = select(flows, chosen)
    page = page_of(height)
    shown = found[chosen.first : chosen.first + page]
    nodes = any("node" in ranked.flow for ranked in flows)
    lines: list[Line] = [_head(found, chosen), _second(chosen, state), *_table(shown, chosen, width, nodes=nodes)]
    lines += [[]] * (height - 1 - len(lines))
    last = f"/{chosen.text}_" if chosen.typing else f"{_BAR}   {_position(chosen.first, len(shown), len(found))}"
    return [*lines[: height - 1], [(last, "" if chosen.typing else "dim")]][:height]


def page_of(height: int) -> int:
    """Return how many flows a screen of *height* lines shows."""
    return max(1, height - 4)


def _position(first: int, shown: int, total: int) -> str:
    return f"{first + 1}-{first + shown} of {total}" if shown else f"none of {total}"


def _head(found: Sequence[Ranked], chosen: Chosen) -> Line:
    sums = dict.fromkeys(Verdict, 0)
    leaks = 0
    for flow, _ in found:
        sums[Verdict(flow["verdict"])] += flow["bytes"]
        leaks += flow["reason"] in LEAKS
    text = (
        f"{len(found)} flows, {size(sums[Verdict.INTERCEPTED])} intercepted, {size(sums[Verdict.BYPASSED])} bypassed, "
    )
    words = [(text, "bold"), (f"{leaks} leak" if leaks else "no leaks", "bad" if leaks else "good")]
    return [*words, *([("   PAUSED", "warning")] if chosen.paused else [])]


def _second(chosen: Chosen, state: str) -> Line:
    kind = "" if chosen.kind == "all" else f", {chosen.kind} only"
    text = f", containing {chosen.text!r}" if chosen.text else ""
    order = f"by {chosen.sort}, {'largest' if chosen.descending else 'smallest'} first"
    return [(f"{order}{kind}{text}", "dim"), *([(f"   {printable(state)}", "bad")] if state else [])]


_COLUMNS = (
    Column("node", 0),
    Column("pod", 0),
    Column("container", 7),
    Column("destination", 0),
    Column("port", 2, right=True),
    Column("proto", 6),
    Column("verdict", 1),
    Column("reason", 0),
    Column("connections", 3, right=True),
    Column("bytes", 4, right=True),
    Column("received", 5, right=True),
    Column("rate", 1, right=True),
)
_SORTED = {"pod": "pod", "received": "received_bytes", "proto": "protocol"}
_GAP = "  "


def _table(shown: Sequence[Ranked], chosen: Chosen, width: int, *, nodes: bool) -> list[Line]:
    rows = [_row(ranked) for ranked in shown]
    used = [n for n in range(len(_COLUMNS)) if nodes or n]
    widths = {n: max(len(_title(n, chosen)), *(len(row[n][0]) for row in rows), 0) for n in used}
    while sum(widths[n] + len(_GAP) for n in used) - len(_GAP) > width and (
        least := max(_COLUMNS[n].rank for n in used)
    ):
        used = [n for n in used if _COLUMNS[n].rank < least]
    head = _GAP.join(_pad(n, _title(n, chosen), widths[n]) for n in used)
    lines: list[Line] = [[(head, "bold")]]
    for row in rows:
        pieces = [(_pad(n, row[n][0], widths[n]) + _GAP, row[n][1]) for n in used]
        lines.append(pieces)
    return lines


def _title(number: int, chosen: Chosen) -> str:
    title = _COLUMNS[number].title
    mark = ("v" if chosen.descending else "^") if _SORTED.get(title, title) == chosen.sort else ""
    return title.upper() + mark


def _pad(number: int, text: str, width: int) -> str:
    return text.rjust(width) if _COLUMNS[number].right else text.ljust(width)


def _row(ranked: Ranked) -> Sequence[tuple[str, str]]:
    flow, rate = ranked
    style = style_of(flow)
    return (
        (printable(str(flow.get("node", ""))), ""),
        (printable(f"{flow['namespace']}/{flow['pod']}"), ""),
        (printable(flow["container"] or "-"), ""),
        (printable(destination_of(flow)), ""),
        ("-" if flow["port"] is None else str(flow["port"]), ""),
        (flow["protocol"], ""),
        (flow["verdict"], style),
        (flow["reason"], style if style == "bad" else ""),
        (str(flow["connections"]), ""),
        (size(flow["bytes"]), ""),
        (size(flow["received_bytes"]), ""),
        ("-" if rate is None else f"{size(rate)}/s", ""),
    )


def destination_of(flow: Flow) -> str:
    """Return whom a flow goes to: the name, and the address where that is another."""
    name, address = flow["destination"], flow["address"]
    return str(name) if address in (None, name) else f"{name} ({address})"


def style_of(flow: Flow) -> str:
    """Return the style of a flow's verdict."""
    if flow["reason"] in LEAKS:
        return "bad"
    return {Verdict.BYPASSED.value: "warning", Verdict.INTERCEPTED.value: "good"}.get(flow["verdict"], "dim")
