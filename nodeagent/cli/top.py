"""``top``: the busiest flows; on a terminal live, else once."""

import argparse
import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from typing import Any, NamedTuple, TypeAlias

from nodeagent.cli.client import ask_flows
from nodeagent.cli.flows import HEADER, parameters, rows
from nodeagent.cli.live import SORTS, Chosen, Flow, Rates, page_of, press, screen, select
from nodeagent.cli.output import print_json, print_table, say, size
from nodeagent.cli.terminal import KEY_SECONDS, Terminal, is_live, opened
from nodeagent.cli.watching import Seen, Watch, check_interval

Flows: TypeAlias = list[dict[str, Any]]


class Told(NamedTuple):
    """What a look found, and what was said about it, such as which node gave no answer."""

    flows: Flows
    said: str


Look: TypeAlias = Callable[[Mapping[str, str]], Flows]


def run_top(arguments: argparse.Namespace) -> int:
    """Print the busiest flows, again and again on a terminal, until interrupted."""
    return show_top(arguments, lambda asked: ask_flows(arguments.api, asked))


def show_top(arguments: argparse.Namespace, look: Look, first: Sequence[str] = ()) -> int:
    """Print the busiest flows that *look* finds for parameters; fields of *first* come before the others."""
    check_interval(arguments.interval)
    asked = {"sort": "-bytes", **parameters(arguments)}
    if arguments.output == "json":
        print_json(look(asked))
    elif arguments.once or not is_live():
        _print(look(asked), first)
    else:
        _watch(lambda: look(asked), arguments)
    return 0


def _watch(look: Callable[[], Flows], arguments: argparse.Namespace) -> None:
    now = Seen(time.monotonic(), Told(look(), ""), None)  # whoever names a wrong place is told before anything is drawn
    watch = Watch(lambda: _quietly(look), arguments.interval)
    try:
        with opened() as terminal, watch.running():
            _draw(terminal, watch, now, _chosen(arguments))
    except KeyboardInterrupt:
        return


def _quietly(look: Callable[[], Flows]) -> Told:
    """Look, and keep what would have been said about it on standard error: that is where the screen is."""
    with redirect_stderr(io.StringIO()) as said:
        found = look()
    return Told(found, said.getvalue().strip())


def _chosen(arguments: argparse.Namespace) -> Chosen:
    if not arguments.sort:
        return Chosen()
    name = arguments.sort.lstrip("-")
    return Chosen(sort=name if name in SORTS else "rate", descending=arguments.sort.startswith("-"))


def _draw(terminal: Terminal, watch: Watch[Told], now: Seen[Told], chosen: Chosen) -> None:
    """Draw when there is something new, until the user quits."""
    rates, state = Rates(), ""
    ranked = rates.rank(now.found.flows if now.found else [], now.at)
    is_stale = True
    while True:
        height, width = terminal.size
        if is_stale:
            terminal.draw(screen(ranked, chosen, state, height, width))
        keys = terminal.keys(KEY_SECONDS)
        for key in keys:
            pressed = press(chosen, key, page_of(height), len(select(ranked, chosen)))
            if pressed is None:
                return
            chosen = pressed
        newest = watch.newest()
        if newest:
            state = newest.problem or (newest.found.said if newest.found else "")
            if newest.found and not chosen.paused:
                ranked = rates.rank(newest.found.flows, newest.at)
        is_stale = bool(keys or newest)


def _print(flows: Sequence[Flow], first: Sequence[str]) -> None:
    total = {
        verdict: sum(f["bytes"] for f in flows if f["verdict"] == verdict) for verdict in ("intercepted", "bypassed")
    }
    say(f"{len(flows)} flows, {size(total['intercepted'])} intercepted, {size(total['bypassed'])} bypassed\n")
    print_table(rows(flows, first), (*first, *HEADER))
