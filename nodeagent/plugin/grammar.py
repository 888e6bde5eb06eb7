"""The plugin's command line."""

import argparse
from collections.abc import Callable, Mapping
from typing import Final

from nodeagent import __version__
from nodeagent.cli.agent_arguments import add_archive, add_filters
from nodeagent.cli.arguments import Parser

_PORT: Final = 9641
_EPILOG: Final = """\
It asks through `kubectl port-forward`, and needs the rights to get pods and to create pods/portforward in the agents'
namespace (--agent-namespace).  `explain` needs to get the pod, too; `support` whatever else it can read there, and
pods/exec for what takes the programmer's privileges: what it may not have is missing.

exit codes:
  0  done, or in sync
  1  differs, or leaks found
  2  usage or bad input
  5  a node's agent cannot be reached: what the others said is printed
"""
_SUMMARIES: Final = {
    "status": "the pods of all nodes: in sync, or not; leaks",
    "flows": "who talked to whom: intercepted, bypassed, and why",
    "top": "the busiest flows, live",
    "explain": "what happens to a connection of a pod, and why",
    "support": "one archive of what a maintainer asks for, without secrets",
}
_EXAMPLES: Final = {
    "status": "kubectl nodeagent status --node worker-3",
    "flows": "kubectl nodeagent flows --leaks --sort=-bytes",
    "top": "kubectl nodeagent top --namespace shop",
    "explain": "kubectl nodeagent explain --pod shop/web --to 203.0.113.10:443",
    "support": "kubectl nodeagent support --node worker-3",
}

Run = Callable[[argparse.Namespace], int]


def build_parser(runs: Mapping[str, Run], connection: Callable[[argparse.ArgumentParser], None]) -> Parser:
    """Return the parser; each command of *runs* is called by its name, *connection* adds what ``explain`` is about."""
    parser = Parser(
        prog="kubectl nodeagent",
        description="Ask the agents of a cluster's nodes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nodeagent {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    made: dict[str, argparse.ArgumentParser] = {}
    for name, run in runs.items():
        made[name] = commands.add_parser(
            name,
            help=_SUMMARIES[name],
            description=f"{_SUMMARIES[name][0].upper()}{_SUMMARIES[name][1:]}.",
            epilog=f"example:\n  {_EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made[name].set_defaults(run=run)
        add_place(made[name])
        if name != "explain":
            made[name].add_argument("--node", metavar="NAME", help="ask this node's agent only")
    for name in ("status", "flows", "top", "explain", "support"):
        formats = ["table", "json", "csv"] if name == "flows" else ["table", "json"]
        made[name].add_argument("-o", "--output", choices=formats, default="table", help="default: table")
    for name in ("flows", "top"):
        add_filters(made[name])
    made["top"].add_argument("--once", action="store_true", help="print once; the default where there is no terminal")
    made["top"].add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="default: 2")
    made["explain"].add_argument("--pod", required=True, metavar="NAMESPACE/NAME", help="of the pod that connects")
    connection(made["explain"])
    add_archive(made["support"])
    return parser


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which cluster, and where its agents are."""
    parser.add_argument("--context", metavar="NAME", help="of the kubeconfig, as kubectl has it")
    parser.add_argument("--kubeconfig", metavar="FILE", help="as kubectl has it")
    parser.add_argument(
        "--agent-namespace", default="nodeagent", metavar="NAME", help="where the agents are (default: nodeagent)"
    )
    parser.add_argument(
        "--agent-port", type=int, default=_PORT, metavar="N", help=f"http.ui of the configuration (default: {_PORT})"
    )
    parser.add_argument("--kubectl", default="kubectl", metavar="PROGRAM", help="default: the first along PATH")
