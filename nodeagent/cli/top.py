"""``top``: the busiest flows, by what was sent since the last look."""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nodeagent.cli.client import ask_flows
from nodeagent.cli.flows import HEADER, parameters, rows, size
from nodeagent.cli.output import print_table, say
from nodeagent.errors import InputError

_CLEAR = "\x1b[H\x1b[J"
_IDENTITY = ("namespace", "pod", "container", "destination", "address", "port", "protocol", "verdict", "reason")
_SHORTEST_INTERVAL = 0.2
_LINES_AROUND = 4
_Flow = dict[str, Any]
Look = Callable[[Mapping[str, str]], list[_Flow]]


def run_top(arguments: argparse.Namespace) -> int:
    """Print the busiest flows, again and again on a terminal, until interrupted."""
    return show_top(arguments, lambda asked: ask_flows(arguments.api, asked))


def show_top(arguments: argparse.Namespace, look: Look, first: Sequence[str] = ()) -> int:
    """Print the busiest flows that *look* finds for parameters; fields of *first* come before the others."""
    if not arguments.interval >= _SHORTEST_INTERVAL:
        raise InputError(f"--interval {arguments.interval}: give {_SHORTEST_INTERVAL} seconds or more")
    asked = {"sort": "-bytes", **parameters(arguments)}
    if arguments.once or not sys.stdout.isatty():
        _print(_sorted(look(asked), {}, arguments), {}, 0.0, None, first)
        return 0
    before: dict[tuple[Any, ...], int] = {}
    last = time.monotonic()
    try:
        while True:
            flows, now = look(asked), time.monotonic()
            sys.stdout.write(_CLEAR)
            _print(_sorted(flows, before, arguments), before, now - last, shutil.get_terminal_size().lines, first)
            sys.stdout.flush()
            before, last = {_identity(flow): flow["bytes"] for flow in flows}, now
            time.sleep(arguments.interval)
    except KeyboardInterrupt:
        return 0


def _sorted(flows: list[_Flow], before: Mapping[tuple[Any, ...], int], arguments: argparse.Namespace) -> list[_Flow]:
    if arguments.sort:
        return flows
    return sorted(flows, key=lambda flow: flow["bytes"] - before.get(_identity(flow), 0), reverse=True)


def _identity(flow: Mapping[str, Any]) -> tuple[Any, ...]:
    return (flow.get("node"), *(flow[name] for name in _IDENTITY))


def _print(
    flows: list[_Flow],
    before: Mapping[tuple[Any, ...], int],
    seconds: float,
    lines: int | None,
    first: Sequence[str],
) -> None:
    total = {
        verdict: sum(f["bytes"] for f in flows if f["verdict"] == verdict) for verdict in ("intercepted", "bypassed")
    }
    say(f"{len(flows)} flows, {size(total['intercepted'])} intercepted, {size(total['bypassed'])} bypassed\n")
    shown = flows if lines is None else flows[: max(1, lines - _LINES_AROUND)]
    table, header = rows(shown, first), (*first, *HEADER)
    if before and seconds:
        rates = [size((f["bytes"] - before.get(_identity(f), 0)) / seconds) + "/s" for f in shown]
        print_table([(*row, rate) for row, rate in zip(table, rates, strict=True)], (*header, "rate"))
    else:
        print_table(table, header)
