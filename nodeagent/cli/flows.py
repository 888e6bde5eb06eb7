"""``flows``: who talked to whom, as a table, JSON or CSV."""

import argparse
import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nodeagent.cli.agent_arguments import FILTERS
from nodeagent.cli.client import ask_flows
from nodeagent.cli.output import paint, print_json, print_table
from nodeagent.ledger import LEAKS
from nodeagent.model import Verdict

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
_FIELDS = (
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
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_STEP = 1024
_FEW = 10


def run_flows(arguments: argparse.Namespace) -> int:
    """Print the flows that match."""
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
    return {**found, "leaks": "1"} if arguments.leaks else found


def rows(flows: Iterable[Mapping[str, Any]], first: Sequence[str] = ()) -> list[Sequence[object]]:
    """Return what a table shows of flows, fields of *first* before the others."""
    return [
        (
            *(flow[name] for name in first),
            f"{flow['namespace']}/{flow['pod']}",
            flow["container"] or "-",
            _destination(flow),
            "-" if flow["port"] is None else flow["port"],
            flow["protocol"],
            paint(flow["verdict"], _style(flow)),
            flow["reason"],
            flow["connections"],
            size(flow["bytes"]),
            size(flow["received_bytes"]),
        )
        for flow in flows
    ]


def _destination(flow: Mapping[str, Any]) -> str:
    name, address = flow["destination"], flow["address"]
    return name if address in (None, name) else f"{name} ({address})"


def _style(flow: Mapping[str, Any]) -> str:
    if flow["reason"] in LEAKS:
        return "bad"
    return {Verdict.BYPASSED.value: "warning", Verdict.INTERCEPTED.value: "good"}.get(flow["verdict"], "dim")


def size(count: float) -> str:
    """Return bytes as people read them.

    >>> size(999), size(2048), size(5 << 20)
    ('999 B', '2.0 KiB', '5.0 MiB')
    """
    for unit in _UNITS[:-1]:
        if abs(count) < _STEP:
            return f"{count:.0f} {unit}" if unit == "B" or count >= _FEW * _FEW else f"{count:.1f} {unit}"
        count /= _STEP
    return f"{count:.1f} {_UNITS[-1]}"


def _print_csv(flows: Iterable[Mapping[str, Any]], first: Sequence[str]) -> None:
    writer = csv.DictWriter(sys.stdout, (*first, *_FIELDS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flows)
