"""``status``: whether what this node does is what was configured."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

from nodeagent.cli.client import ask
from nodeagent.cli.live import Line
from nodeagent.cli.output import (
    emit,
    has_reader,
    paint,
    print_error,
    print_json,
    print_table,
    print_warning,
    say,
)
from nodeagent.cli.terminal import KEY_SECONDS, is_live, opened
from nodeagent.cli.watching import Watch, check_interval, looks
from nodeagent.errors import printable

Found: TypeAlias = Mapping[str, Any]

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_STEPS = {"j": 1, "k": -1, "KEY_DOWN": 1, "KEY_UP": -1, "KEY_NPAGE": 10, "KEY_PPAGE": -10}
HEADER = ("pod", "mode", "state", "rule set", "epoch", "age", "in sync", "leaks", "last 10 min", "detail")


def run_status(arguments: argparse.Namespace) -> int:
    """Print the state of all pods; 1 if a pod is out of sync or anything leaked."""
    if arguments.watch:
        return watch(lambda: ask(arguments.api, "/api/v1/pods"), arguments)
    found = ask(arguments.api, "/api/v1/pods")
    if arguments.output == "json":
        print_json(found)
    else:
        print_table([row(pod) for pod in found["pods"]], HEADER)
        for trouble in found["node"]["troubles"]:
            (print_error if trouble["fatal"] else print_warning)(f"{trouble['condition']}: {trouble['message']}")
        say(f"\n{promise(found)}")
        _print_summary(found)
    return 1 if is_bad(found) else 0


def is_bad(found: Mapping[str, Any]) -> bool:
    """Say whether a pod of *found* is out of sync, or anything leaked."""
    leaks = found["node"]["leaks"]
    return bool(leaks["bytes"] or leaks["connections"] or any(_is_out_of_sync(pod) for pod in found["pods"]))


def _is_out_of_sync(pod: Mapping[str, Any]) -> bool:
    """Say whether it should hold rules and does not; one that another tool redirects should not."""
    return pod["in_sync"] is False and pod["state"] not in ("observed", "skipped", "draining")


def row(pod: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what a table shows of *pod*, below :data:`HEADER`."""
    return tuple(paint(text, style) for text, style in cells(pod))


def cells(pod: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Return what is shown of *pod*, below :data:`HEADER`, each with its style."""
    leaks, in_sync = pod["leaks"], pod["in_sync"]
    return (
        (f"{pod['namespace']}/{pod['pod']}", ""),
        (pod["mode"], ""),
        (pod["state"], ""),
        (pod["ruleset_id"] or "-", ""),
        ("-" if pod["epoch"] is None else str(pod["epoch"]), ""),
        (age(pod["age_seconds"]), ""),
        ("yes", "good") if in_sync else ("no", "bad") if _is_out_of_sync(pod) else ("-", ""),
        _leaked(leaks["connections"], leaks["bytes"]),
        _leaked(leaks["recent_connections"], leaks["recent_bytes"]),
        (pod["detail"] or _refused(pod), ""),
    )


def _refused(pod: Mapping[str, Any]) -> str:
    """Return what of its annotations was refused, the first of it; whatever it has otherwise stays in force."""
    return f"annotations refused: {pod['rejected'][0]['message']}" if pod["rejected"] else ""


def leaked(connections: int, size: int) -> str:
    """Return what leaked as a table shows it."""
    return paint(*_leaked(connections, size))


def _leaked(connections: int, size: int) -> tuple[str, str]:
    return (f"{connections} ({size} B)", "bad") if connections or size else ("0", "")


def age(seconds: float | None) -> str:
    """Return a duration as people say it.

    >>> age(59), age(3 * 3600 + 60), age(2 * 86400), age(None)
    ('59s', '3h', '2d', '-')
    """
    if seconds is None:
        return "-"
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "m")):
        if seconds >= unit:
            return f"{int(seconds // unit)}{name}"
    return f"{int(seconds)}s"


def _print_summary(found: Mapping[str, Any]) -> None:
    say("".join(paint(text, style) for text, style in summary(found)))


def promise(found: Mapping[str, Any]) -> str:
    """Return the sentence about pods that start."""
    return f"a pod's rules stand {found['node']['starts']['promise']}"


def summary(found: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Return the line below the pods, in pieces with their styles."""
    pods, leaks = found["pods"], found["node"]["leaks"]
    good = sum(1 for pod in pods if pod["in_sync"])
    repairs = found["node"]["drift_repairs"]
    return (
        (f"{len(pods)} pods, {good} in sync, {repairs} repaired; leaked since the agent's start: ", ""),
        _leaked(leaks["connections"], leaks["bytes"]),
        (", in the last 10 minutes: ", ""),
        _leaked(leaks["recent_connections"], leaks["recent_bytes"]),
    )


# -- watching -----------------------------------------------------------------------------------


def watch(look: Callable[[], Found], arguments: argparse.Namespace) -> int:
    """Show the state as it changes, until interrupted or nobody reads; 1 if the last of it was bad.

    On a terminal that is a screen, elsewhere the whole of it again whenever it changed; JSON, one line each time.
    """
    check_interval(arguments.interval)
    last: list[Found] = []

    def looked() -> Found:
        last[:] = [look()]
        return last[0]

    try:
        if arguments.output == "json" or not is_live():
            _write(looked, arguments)
        else:
            _draw(looked, arguments.interval)
    except KeyboardInterrupt:
        pass
    return 1 if last and is_bad(last[0]) else 0


def _write(look: Callable[[], Found], arguments: argparse.Namespace) -> None:
    shown: object = None
    problem: str | None = None
    for seen in looks(look, arguments.interval):
        if seen.problem and not problem:
            print_warning(f"{seen.problem}; waiting for it")
        problem = seen.problem
        if not has_reader():
            return
        if seen.found is not None and _lasting(seen.found) != shown:
            shown = _lasting(seen.found)
            lines = [json.dumps(seen.found)] if arguments.output == "json" else _lines(seen.found)
            if not emit(lines):
                return


def _lasting(found: Found) -> object:
    """Return what is said of the pods but their ages, which change by themselves."""
    return found["node"], [{**pod, "age_seconds": None} for pod in found["pods"]]


def _lines(found: Found) -> Sequence[str]:
    stamp = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return [stamp, *("".join(paint(*piece) for piece in line).rstrip() for line in layout(found)), ""]


def layout(found: Found) -> list[Line]:
    """Return the pods as lines of aligned columns, the node's troubles, and the summary."""
    table = [[(name.upper(), "bold") for name in HEADER], *(cells(pod) for pod in found["pods"])]
    widths = [max(len(line[n][0]) for line in table) for n in range(len(HEADER))]
    lines: list[Line] = [
        [
            (printable(text, len(text) + 1).ljust(width) + "  ", style)
            for (text, style), width in zip(line, widths, strict=True)
        ]
        for line in table
    ]
    troubles = [
        (f"{t['condition']}: {t['message']}", "bad" if t["fatal"] else "warning") for t in found["node"]["troubles"]
    ]
    return [*lines, *([trouble] for trouble in troubles), [], [(promise(found), "")], summary(found)]


def _draw(look: Callable[[], Found], interval: float) -> None:
    lines, first, state = layout(look()), 0, ""
    beside = Watch(look, interval)
    with opened() as terminal, beside.running():
        while True:
            height, _ = terminal.size
            shown = lines[first : first + height - 1]
            terminal.draw(
                [
                    *shown,
                    *[[]] * (height - 1 - len(shown)),
                    [(state or "q quit   j k scroll", "bad" if state else "dim")],
                ]
            )
            for key in terminal.keys(KEY_SECONDS):
                if key == "q":
                    return
                step = _STEPS.get(key, 0)
                first = max(0, min(first + step, len(lines) - height + 1))
            newest = beside.newest()
            if newest:
                lines = lines if newest.found is None else layout(newest.found)
                state = newest.problem or ""
