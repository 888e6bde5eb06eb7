"""The command line's grammar.  What a value means is checked here, with one clear line."""

import argparse
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from nodeagent import __version__
from nodeagent.cli import agent_arguments as agent
from nodeagent.cli.output import say
from nodeagent.model import Address, Family, Protocol
from nodeagent.policy import destination
from nodeagent.programmer.seam import Choice

_LONGEST_INTERFACE = 15  # bytes: IFNAMSIZ of linux/if.h, less the NUL
_LONGEST_NUMBER = 10  # digits of a 32-bit number

_EPILOG = """\
exit codes:
  0  done, or in sync
  1  differs, or leaks found
  2  usage or bad input
  3  the kernel refused
  4  nodeagent refused: wrong network namespace, or another tool's redirect
  5  the agent, or its programmer, does not answer
"""

_EXAMPLES = {
    "policy": "nodeagent policy -f pod.yaml -o json",
    "render": "nodeagent render -f pod.yaml --backend legacy --family 6",
    "explain": "nodeagent explain -f pod.yaml --to '[2001:db8::10]:443' --uid 1000\n"
    "  nodeagent explain --pod shop/web --to 203.0.113.10:443",
    "apply": "nodeagent apply -f pod.yaml --netns /proc/4711/ns/net",
    "diff": "nodeagent diff -f pod.yaml --netns 4711",
    "clear": "nodeagent clear -f pod.yaml --netns /run/netns/web --drain-timeout 60",
    "doctor": "nodeagent doctor",
    "run": "nodeagent run --pods-dir /etc/nodeagent/pods --config /etc/nodeagent/config.yaml",
    "programmer": "nodeagent programmer --socket /run/nodeagent/programmer.sock --agent-uid 65532",
    "flows": "nodeagent flows --leaks --sort=-bytes\n  nodeagent flows --follow --since 5m -o json",
    "top": "nodeagent top --namespace shop",
    "status": "nodeagent status -o json\n  nodeagent status --watch",
    "wait": "nodeagent wait --agent 10.0.0.1:9640 --timeout 30",
    "support": "nodeagent support -f support.tar.gz",
    "uninstall": "nodeagent uninstall --drain-timeout 60",
}


@dataclass(frozen=True, slots=True)
class Destination:
    """What ``explain --to`` names."""

    address: Address
    port: int
    protocol: Protocol


class Parser(argparse.ArgumentParser):
    """Prints like every command: argparse itself would fail with a traceback where nobody listens."""

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        """Override what prints usage, help, version and errors."""
        if message:
            say(message.removesuffix("\n"), None if file is sys.stdout else sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="nodeagent",
        description="Send pods' outbound traffic to their sidecars, from the node, and tell what bypasses them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nodeagent {__version__}")
    parser.add_argument("--log-level", choices=["debug", "info", "warning"], default="warning")
    parser.add_argument(
        "--log-format",
        choices=["auto", "text", "json"],
        default="auto",
        help="auto: text on a terminal, else JSON",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_reading(commands)
    _add_programming(commands)
    agent.add(commands, _command, _drain)
    return parser


if TYPE_CHECKING:
    from _typeshed import SupportsWrite

    _Commands: TypeAlias = argparse._SubParsersAction[Parser]  # noqa: SLF001  # argparse has no other name for it


def _add_reading(commands: "_Commands") -> None:
    """``policy``, ``render``, ``explain``: no privilege needed."""
    _manifest(_command(commands, "policy", "what a Pod's annotations were understood to mean"))
    render = _command(commands, "render", "the literal rules that a Pod would get")
    _manifest(render)
    render.add_argument("--family", type=_family, metavar="4|6", help="only this IP version")
    _backend(render)
    explain = _command(commands, "explain", "what happens to a connection, and why")
    _manifest(explain, required=False)
    explain.add_argument("--pod", metavar="NAMESPACE/NAME", help="a pod of this node's agent, in place of a manifest")
    agent.add_api(explain)
    add_connection(explain)


def add_connection(explain: argparse.ArgumentParser) -> None:
    """Add the options that describe a connection."""
    explain.add_argument(
        "--to",
        required=True,
        type=parse_destination,
        metavar="IP:PORT[/udp]",
        help="the destination; an IPv6 address goes in brackets",
    )
    explain.add_argument("--uid", type=agent.number, metavar="N", help="the connecting process's uid")
    explain.add_argument("--gid", type=agent.number, metavar="N", help="the connecting process's gid")
    explain.add_argument(
        "--interface",
        type=_interface,
        metavar="IF",
        help="the device it leaves through (default: lo for loopback and the Pod's own addresses, else eth0)",
    )


def _add_programming(commands: "_Commands") -> None:
    """``apply``, ``diff``, ``clear``, ``doctor``: root."""
    apply = _command(commands, "apply", "program a Pod's network namespace")
    _manifest(apply)
    _netns(apply)
    _backend(apply)
    apply.add_argument(
        "--dry-run",
        action="store_true",
        help="show the plan for a namespace without rules; touch nothing, need no root "
        "(diff compares with what really stands)",
    )
    _drain(apply)
    diff = _command(commands, "diff", "compare a Pod's network namespace with its annotations")
    _manifest(diff)
    _netns(diff)
    _backend(diff)
    clear = _command(commands, "clear", "remove every rule of ours from a namespace")
    _manifest(clear)
    _netns(clear)
    _drain(clear)
    doctor = _command(commands, "doctor", "what this kernel and node can do, and what is missing")
    agent.add_places(doctor)
    agent.add_api(doctor)


def _command(commands: "_Commands", name: str, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {_EXAMPLES[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    formats = ["table", "json", "csv"] if name == "flows" else ["table", "json"]
    parser.add_argument("-o", "--output", choices=formats, default="table", help="default: table")
    return parser


def _manifest(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("-f", "--filename", required=required, metavar="POD.YAML", help="Pod manifest, - for stdin")
    parser.add_argument("--config", metavar="FILE", help="cluster configuration (YAML)")


def _netns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--netns",
        required=True,
        type=_netns_value,
        metavar="PATH|PID",
        help="the Pod's network namespace, or a process in it",
    )


def _backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        type=_choice,
        choices=list(Choice),
        default=None,
        help="default: the configuration's; auto goes by what the namespace uses",
    )


def _drain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--drain-timeout",
        type=agent.seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long to wait for intercepted connections to end (default: 30); then the "
        "tracking rule stays, and another clear finishes the job",
    )
    parser.add_argument("--now", action="store_true", help="do not drain: resets intercepted connections")


# -- values ---------------------------------------------------------------------------------


def parse_destination(text: str) -> Destination:
    """Return the destination that ``IP:PORT``, ``[IPv6]:PORT`` or ``…/udp`` names.

    >>> parse_destination("[2001:db8::10]:53/udp").protocol.value
    'udp'
    """
    try:
        return Destination(*destination.parse_destination(text))
    except ValueError:
        message = f"not a destination: {text!r}; {destination.ALLOWED}"
        raise argparse.ArgumentTypeError(message) from None


def _family(text: str) -> Family:
    if text not in {"4", "6"}:
        message = f"not an IP version: {text!r}; give 4 or 6"
        raise argparse.ArgumentTypeError(message)
    return Family(int(text))


def _choice(text: str) -> Choice:
    try:
        return Choice(text)
    except ValueError:
        message = f"not a backend: {text!r}; give one of {', '.join(Choice)}"
        raise argparse.ArgumentTypeError(message) from None


def _interface(text: str) -> str:
    """Return a device's name: what ``dev_valid_name`` of ``net/core/dev.c`` allows, as far as it can be printed."""
    long = len(text.encode(errors="surrogateescape")) > _LONGEST_INTERFACE
    if not text or long or text in {".", ".."} or not text.isprintable() or set(text) & set("/: "):
        message = f"not a device: {text!r}; give a name of 1 to {_LONGEST_INTERFACE} bytes without blanks, '/' and ':'"
        raise argparse.ArgumentTypeError(message)
    return text


def _netns_value(text: str) -> str | int:
    """Return a PID or a path; ``/proc/self`` means the command line's own process, not its child."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        message = f"not a path: {text!r}; give a path such as /proc/PID/ns/net, or a PID"
        raise argparse.ArgumentTypeError(message)
    for alias in ("/proc/self/", "/proc/thread-self/"):
        if text.startswith(alias):
            return f"/proc/{os.getpid()}/{text.removeprefix(alias)}"
    return int(text) if text.isascii() and text.isdigit() and len(text) < _LONGEST_NUMBER else text
