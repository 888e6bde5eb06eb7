"""The grammar of the commands around a running agent."""

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from nodeagent.model import Reason, Verdict
from nodeagent.policy.grammar import HIGHEST_ID
from nodeagent.runtime.cgroups import NETNS_PATH

DEFAULT_API = "127.0.0.1:9641"
DEFAULT_METRICS = "127.0.0.1:9640"

if TYPE_CHECKING:
    _Commands: TypeAlias = argparse._SubParsersAction[Any]  # noqa: SLF001  # argparse has no other name for it
    _Make: TypeAlias = Callable[[_Commands, str, str], argparse.ArgumentParser]

FILTERS = ("namespace", "pod", "container", "destination", "address", "protocol")
_DURATION_RE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhd]?)", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DAY = 86400
_LONGEST = 30 * _DAY
_LONGEST_NUMBER = 10  # digits of a 32-bit number
SORTS = ("connections", "packets", "bytes", "payload", "received_bytes", "pod", "destination", "reason")


def add(commands: "_Commands", make: "_Make", drain: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the commands; *make* makes one, *drain* adds the options of draining."""
    run = make(commands, "run", "the agent: program the pods of this node, count, serve HTTP")
    run.add_argument("--pods-dir", metavar="DIR", help="a directory of Pod manifests; it is watched")
    _cluster(run)
    run.add_argument("--config", metavar="FILE", help="cluster configuration (YAML); reloaded when it is edited")
    add_places(run)
    _connection(run)
    _programmer(make(commands, "programmer", "the half of the agent that has privileges, in a container of its own"))
    flows = make(commands, "flows", "who talked to whom: intercepted, bypassed, and why")
    add_api(flows)
    add_filters(flows)
    flows.add_argument("--follow", action="store_true", help="go on: a line for each flow that does something")
    _interval(flows)
    top = make(commands, "top", "the busiest flows, live")
    add_api(top)
    add_filters(top)
    top.add_argument("--once", action="store_true", help="print once; the default where there is no terminal")
    _interval(top)
    wait = make(commands, "wait", "until the rules of the pod that it runs in stand: for an init container")
    wait.add_argument(
        "--agent", metavar="HOST:PORT", help="the open listener of the node's agent (default: HOST_IP:9640)"
    )
    wait.add_argument("--timeout", type=seconds, default=60.0, metavar="SECONDS", help="default: 60")
    status = make(commands, "status", "the node's pods: in sync, or not; leaks")
    add_api(status)
    status.add_argument("--watch", action="store_true", help="go on: the state as it changes")
    _interval(status)
    support = make(commands, "support", "one archive of what a maintainer asks for, without secrets")
    add_api(support)
    support.add_argument(
        "--metrics",
        default=DEFAULT_METRICS,
        metavar="HOST:PORT",
        help=f"its open listener (default: {DEFAULT_METRICS})",
    )
    add_archive(support)
    add_places(support)
    uninstall = make(commands, "uninstall", "remove every rule, pin and attachment of ours from this node")
    uninstall.add_argument("--proc", default="/proc", metavar="DIR", help="the node's processes (default: /proc)")
    add_places(uninstall)
    drain(uninstall)


def _interval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="SECONDS", help="time between two looks (default: 2)"
    )


def seconds(text: str) -> float:
    """Return a time of at most a day."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= _DAY:  # also refuses nan
        message = f"not a time: {text!r}; give seconds, 0 to {_DAY}"
        raise argparse.ArgumentTypeError(message)
    return value


def number(text: str) -> int:
    """Return a uid or gid."""
    if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER and int(text) <= HIGHEST_ID):
        message = f"not a uid or gid: {text!r}; give a number from 0 to {HIGHEST_ID}"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _duration(text: str) -> float:
    """Return seconds of what people write for a time.

    >>> _duration("90"), _duration("5m"), _duration("1.5h")
    (90.0, 300.0, 5400.0)
    """
    found = _DURATION_RE.fullmatch(text)
    value = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < value <= _LONGEST:
        message = f"not a time: {text!r}; give a number with s, m, h or d, such as 5m, up to 30d"
        raise argparse.ArgumentTypeError(message)
    return value


def _cluster(run: argparse.ArgumentParser) -> None:
    run.add_argument("--kubernetes", action="store_true", help="the pods that the API server has for this node")
    run.add_argument("--node", metavar="NAME", help="this node's name (default: NODE_NAME in the environment)")
    run.add_argument(
        "--kubeconfig", default="", metavar="FILE", help="default: the service account, else the user's own"
    )
    run.add_argument(
        "--nri",
        metavar="SOCKET",
        help="the container runtime's NRI socket, or off (default with --kubernetes: runtime.nri of the configuration; "
        "with --programmer as well: the one that the programmer was told of)",
    )
    run.add_argument(
        "--netns-dir",
        default=NETNS_PATH,
        metavar="DIR",
        help=f"where the container runtime keeps network namespaces (default: {NETNS_PATH})",
    )
    run.add_argument("--context", default="", metavar="NAME", help="one of the kubeconfig (default: its current one)")


def _connection(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--programmer",
        metavar="PATH",
        help="the socket of 'nodeagent programmer' (default: a child of our own, which needs our privileges)",
    )
    run.add_argument(
        "--programmer-uid", type=number, default=0, metavar="N", help="whom to talk to at that socket (default: 0)"
    )


def _programmer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--socket", required=True, metavar="PATH", help="where the agent connects")
    parser.add_argument("--agent-uid", required=True, type=number, metavar="N", help="who may: nobody else is answered")
    parser.add_argument(
        "--proc", default="/proc", metavar="DIR", help="the node's processes: in a container, the host's /proc"
    )
    parser.add_argument(
        "--nri",
        metavar="SOCKET",
        help="the container runtime's NRI socket, which the agent hears through us (default: off)",
    )
    parser.add_argument("--bpffs", default="/sys/fs/bpf", metavar="DIR", help="default: /sys/fs/bpf")
    parser.add_argument(
        "--cgroup",
        default="/sys/fs/cgroup",
        metavar="DIR",
        help="the node's /sys/fs/cgroup, on hybrid nodes as well (default: /sys/fs/cgroup)",
    )
    parser.add_argument(
        "--programs",
        default="/run/nodeagent/programs",
        metavar="DIR",
        help="compiled counting programs; ours alone (default: /run/nodeagent/programs)",
    )


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the agent keeps things and counts."""
    parser.add_argument("--state-dir", default="/run/nodeagent", metavar="DIR", help="default: /run/nodeagent")
    parser.add_argument("--bpffs", default="/sys/fs/bpf", metavar="DIR", help="default: /sys/fs/bpf")
    parser.add_argument(
        "--cgroup",
        metavar="DIR",
        help="the cgroup v2 directory that holds all pods' (default: where cgroup v2 is mounted)",
    )


def add_api(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the agent listens."""
    parser.add_argument(
        "--api", default=DEFAULT_API, metavar="HOST:PORT", help=f"the agent's inner listener (default: {DEFAULT_API})"
    )


def add_archive(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what becomes an archive, and where."""
    parser.add_argument(
        "-f",
        "--filename",
        metavar="FILE",
        help="a new file, or - for standard output (default: nodeagent-support-NAME-TIME.tar.gz)",
    )
    parser.add_argument("--flows", action="store_true", help="who talked to whom as well")


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Add what chooses and sorts flows."""
    for name in FILTERS:
        more = ", by its name or NAMESPACE/NAME" if name == "pod" else ""
        parser.add_argument(f"--{name}", metavar="VALUE", help=f"only this {name}{more}")
    parser.add_argument("--verdict", choices=[verdict.value for verdict in Verdict])
    parser.add_argument("--reason", choices=[r.value for r in Reason if r is not Reason.LOOPBACK])
    parser.add_argument("--since", type=_duration, metavar="TIME", help="only what was active since then, such as 5m")
    parser.add_argument("--leaks", action="store_true", help="only what should have been intercepted")
    fields = [f"{sign}{name}" for name in SORTS for sign in ("", "-")]
    parser.add_argument(
        "--sort",
        choices=fields,
        default=None,
        metavar="FIELD",
        help=f"{', '.join(SORTS)}; a leading - for descending (--sort=-bytes)",
    )
