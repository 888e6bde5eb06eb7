"""``status``: whether what this node does is what was configured."""

import argparse
from collections.abc import Mapping
from typing import Any

from nodeagent.cli.client import ask
from nodeagent.cli.output import paint, print_error, print_json, print_table, print_warning, say

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
HEADER = ("pod", "mode", "state", "rule set", "epoch", "age", "in sync", "leaks", "last 10 min", "detail")


def run_status(arguments: argparse.Namespace) -> int:
    """Print the state of all pods; 1 if a pod is out of sync or anything leaked."""
    found = ask(arguments.api, "/api/v1/pods")
    if arguments.output == "json":
        print_json(found)
    else:
        print_table([row(pod) for pod in found["pods"]], HEADER)
        for trouble in found["node"]["troubles"]:
            (print_error if trouble["fatal"] else print_warning)(f"{trouble['condition']}: {trouble['message']}")
        say(f"\na pod's rules stand {found['node']['starts']['promise']}")
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
    leaks, in_sync = pod["leaks"], pod["in_sync"]
    shown = paint("yes", "good") if in_sync else paint("no", "bad") if _is_out_of_sync(pod) else "-"
    return (
        f"{pod['namespace']}/{pod['pod']}",
        pod["mode"],
        pod["state"],
        pod["ruleset_id"] or "-",
        "-" if pod["epoch"] is None else pod["epoch"],
        age(pod["age_seconds"]),
        shown,
        leaked(leaks["connections"], leaks["bytes"]),
        leaked(leaks["recent_connections"], leaks["recent_bytes"]),
        pod["detail"] or "",
    )


def leaked(connections: int, size: int) -> str:
    """Return what leaked as a table shows it."""
    return paint(f"{connections} ({size} B)", "bad") if connections or size else "0"


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
    pods, leaks = found["pods"], found["node"]["leaks"]
    good = sum(1 for pod in pods if pod["in_sync"])
    repairs = found["node"]["drift_repairs"]
    say(
        f"{len(pods)} pods, {good} in sync, {repairs} repaired; "
        f"leaked since the agent's start: {leaked(leaks['connections'], leaks['bytes'])}, "
        f"in the last 10 minutes: {leaked(leaks['recent_connections'], leaks['recent_bytes'])}"
    )
