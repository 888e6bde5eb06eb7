"""``flows --follow``: a line for each flow that did something, as long as somebody reads.

A line has the flow's totals, as ``flows`` prints them, and what is new since its last line.  So a reader who missed
lines, or an agent that restarted, makes no total wrong.
"""

import argparse
import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeAlias

from nodeagent.cli.client import ask_flows
from nodeagent.cli.live import Flow, destination_of, identity, style_of
from nodeagent.cli.output import emit, has_reader, paint, print_warning, size
from nodeagent.cli.watching import attempt, check_interval
from nodeagent.errors import printable

FIELDS = (
    "namespace",
    "pod",
    "container",
    "destination",
    "address",
    "port",
    "protocol",
    "verdict",
    "reason",
    "connections",
    "packets",
    "bytes",
    "payload",
    "received_bytes",
)
_COUNTERS = FIELDS[9:]
_LINE_FIELDS = ("time", *FIELDS, "new_connections", "new_bytes")

_SLACK = 2
"""Seconds that are asked for twice: the agent's clock and ours round differently, and a look takes time."""

_ROOM = 10_000
"""Flows that may come and go before all are asked for again, so that what is remembered stays bounded."""

_Known: TypeAlias = dict[tuple[Any, ...], Flow]
_Format: TypeAlias = Callable[[Iterable[Mapping[str, Any]]], Sequence[str]]


def follow(arguments: argparse.Namespace, asked: Mapping[str, str]) -> int:
    """Print what flows do, until interrupted or nobody reads; an agent that is away is waited for.

    Raises:
        NodeagentError: the agent does not answer at the beginning, or the output cannot be written.
    """
    check_interval(arguments.interval)
    with suppress(KeyboardInterrupt):
        _follow(arguments, asked, _FORMATS[arguments.output]())
    return 0


def _follow(arguments: argparse.Namespace, asked: Mapping[str, str], form: _Format) -> None:
    ever = {name: value for name, value in asked.items() if name != "since"}
    last = time.monotonic()
    known = _known(arguments.api, ever)
    room = len(known) + _ROOM
    earlier = ask_flows(arguments.api, asked) if "since" in asked else []
    problem = ""
    goes_on = emit(form(_line(flow, None) for flow in earlier))
    while goes_on:
        time.sleep(arguments.interval)
        lately = {**ever, "since": str(math.ceil(time.monotonic() - last) + _SLACK)}
        seen = attempt(partial(ask_flows, arguments.api, lately))
        _tell(problem, seen.problem or "")
        problem, goes_on = seen.problem or "", has_reader()
        if seen.found is None:
            continue
        last = seen.at
        changed = [flow for flow in seen.found if _counters(flow) != _counters(known.get(identity(flow)))]
        if changed:
            goes_on = emit(form(_line(flow, known.get(identity(flow), {})) for flow in changed))
        known.update((identity(flow), flow) for flow in changed)
        if len(known) > room:
            known = _known(arguments.api, ever)
            room = len(known) + _ROOM


def _known(api: str, asked: Mapping[str, str]) -> _Known:
    return {identity(flow): flow for flow in ask_flows(api, asked)}


def _tell(before: str, now: str) -> None:
    if now and not before:
        print_warning(f"{now}; waiting for it")
    elif before and not now:
        print_warning("the agent answers again")


def _counters(flow: Flow | None) -> tuple[int, ...] | None:
    return None if flow is None else tuple(flow[name] for name in _COUNTERS)


def _line(flow: Flow, before: Flow | None) -> dict[str, Any]:
    """Return *flow* as a line; *before* is empty if it is new, None if what is new cannot be told."""
    began_anew = before and any(flow[name] < before[name] for name in _COUNTERS)
    new = {
        f"new_{name}": None if before is None else flow[name] - (0 if began_anew else before.get(name, 0))
        for name in ("connections", "bytes")
    }
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"time": now, **flow, **new}


# -- formats --------------------------------------------------------------------------------------


def _as_json() -> _Format:
    return lambda lines: [json.dumps(line) for line in lines]


def _as_csv() -> _Format:
    """Return a format that writes the header with the first lines, even if there are none."""
    header = [_LINE_FIELDS]

    def form(lines: Iterable[Mapping[str, Any]]) -> Sequence[str]:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows(header)
        header.clear()
        writer.writerows([[line[name] for name in _LINE_FIELDS] for line in lines])
        return text.getvalue().splitlines()

    return form


_HEADER = ("time", "pod", "container", "destination", "port", "protocol", "verdict", "reason", "new", "bytes")
_WIDTHS = (8, 20, 12, 20, 5, 8, 11, 19, 4, 0)


def _as_table() -> _Format:
    """Return a format whose columns grow with what they have to hold: lines that are out cannot be mended."""
    widths = list(_WIDTHS)
    rows: list[Sequence[tuple[str, str]]] = [[(name.upper(), "bold") for name in _HEADER]]

    def form(lines: Iterable[Mapping[str, Any]]) -> Sequence[str]:
        rows.extend(map(_row, lines))
        for row in rows:
            widths[:] = [max(width, len(text)) for width, (text, _) in zip(widths, row, strict=True)]
        made = [_join(row, widths) for row in rows]
        rows.clear()
        return made

    return form


def _join(row: Sequence[tuple[str, str]], widths: Sequence[int]) -> str:
    return "  ".join(paint(text.ljust(width), style) for (text, style), width in zip(row, widths, strict=True)).rstrip()


def _row(line: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    style = style_of(line)
    more, grown = line["new_connections"], line["new_bytes"]
    return (
        (line["time"][11:19], "dim"),
        (printable(f"{line['namespace']}/{line['pod']}"), ""),
        (printable(line["container"] or "-"), ""),
        (printable(destination_of(line)), ""),
        ("-" if line["port"] is None else str(line["port"]), ""),
        (line["protocol"], ""),
        (line["verdict"], style),
        (line["reason"], style if style == "bad" else ""),
        ("-" if more is None else f"+{more}", ""),
        (size(line["bytes"]) if grown is None else f"+{size(grown)}", ""),
    )


_FORMATS: Mapping[str, Callable[[], _Format]] = {"table": _as_table, "json": _as_json, "csv": _as_csv}
