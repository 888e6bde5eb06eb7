"""``flows``: who talked to whom, as a table, JSON or CSV."""

import argparse
import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nodeagent.cli.agent_arguments import FILTERS
from nodeagent.cli.client import ask_flows
from nodeagent.cli.follow import FIELDS, follow
from nodeagent.cli.live import destination_of, style_of
from nodeagent.cli.output import paint, print_json, print_table, say, size

HEADER = (
    "pod",
    "container",
    "destination",
    "port",
    "protocol",
    "verdict",
    "reason",
    "connections",
    "bytes",
    "received",
)


def run_flows(arguments: argparse.Namespace) -> int:
    """Print the flows that match; with ``--follow`` go on with what they do."""
    if arguments.follow:
        return follow(arguments, parameters(arguments))
    print_flows(ask_flows(arguments.api, parameters(arguments)), arguments.output)
    return 0


def print_flows(flows: Sequence[Mapping[str, Any]], output: str, first: Sequence[str] = ()) -> None:
    """Print flows; fields of *first*, such as their node, come before the others."""
    if output == "json":
        print_json(flows)
    elif output == "csv":
        _print_csv(flows, first)
    else:
        print_table(rows(flows, first), (*first, *HEADER))


def parameters(arguments: argparse.Namespace) -> dict[str, str]:
    """Return what the arguments ask of the API."""
    names = (*FILTERS, "verdict", "reason", "sort")
    found = {name: str(value) for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.since is not None:
        found["since"] = str(math.ceil(arguments.since))
    return {**found, "leaks": "1"} if arguments.leaks else found


def rows(flows: Iterable[Mapping[str, Any]], first: Sequence[str] = ()) -> list[Sequence[object]]:
    """Return what a table shows of flows, fields of *first* before the others."""
    return [
        (
            *(flow[name] for name in first),
            f"{flow['namespace']}/{flow['pod']}",
            flow["container"] or "-",
            destination_of(flow),
            "-" if flow["port"] is None else flow["port"],
            flow["protocol"],
            paint(flow["verdict"], style_of(flow)),
            flow["reason"],
            flow["connections"],
            size(flow["bytes"]),
            size(flow["received_bytes"]),
        )
        for flow in flows
    ]


def _print_csv(flows: Iterable[Mapping[str, Any]], first: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, (*first, *FIELDS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flows)
    say(text.getvalue().removesuffix("\n"))
