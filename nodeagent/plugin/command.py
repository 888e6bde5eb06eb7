"""The plugin's commands: those of ``nodeagent`` that ask an agent, for one node or all."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from nodeagent.cli import guard
from nodeagent.cli.arguments import Parser, add_connection
from nodeagent.cli.client import ask, ask_flows
from nodeagent.cli.flows import parameters, print_flows
from nodeagent.cli.output import print_error, print_json, print_table, print_warning, say
from nodeagent.cli.reading import run_explain
from nodeagent.cli.status import HEADER, is_bad, leaked, row
from nodeagent.cli.top import show_top
from nodeagent.errors import UnreachableError
from nodeagent.plugin import grammar
from nodeagent.plugin.fleet import Answer, Fleet, find_agents, find_node
from nodeagent.plugin.kubectl import Kubectl
from nodeagent.plugin.support import collect

_Flow = dict[str, Any]
_NODE: Final = ("node",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    return guard(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


def build_parser() -> Parser:
    """Return the parser of the plugin's command line."""
    runs = {"status": _status, "flows": _flows, "top": _top, "explain": _explain, "support": _support}
    return grammar.build_parser(runs, add_connection)


def _kubectl(arguments: argparse.Namespace) -> Kubectl:
    options = [f"--{name}={value}" for name in ("context", "kubeconfig") if (value := getattr(arguments, name))]
    return Kubectl(arguments.kubectl, options)


def _fleet(arguments: argparse.Namespace, node: str | None) -> Fleet:
    kubectl = _kubectl(arguments)
    agents = find_agents(kubectl, arguments.agent_namespace, node)
    return Fleet(kubectl, agents, arguments.agent_port)


def _complain(answers: Sequence[Answer[Any]]) -> bool:
    """Say which nodes gave no answer; return whether there are any."""
    silent = [answer for answer in answers if answer.error]
    for answer in silent:
        print_error(f"node {answer.node}: {answer.error}")
    return bool(silent)


# ── status ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _status(arguments: argparse.Namespace) -> int:
    """Print the state of all pods; 1 if one is out of sync or anything leaked, 5 if a node gave no answer."""
    with _fleet(arguments, arguments.node) as fleet:
        answers = list(fleet.ask(lambda api: ask(api, "/api/v1/pods")))
    found = {answer.node: answer.value for answer in answers if answer.value is not None}
    if arguments.output == "json":
        print_json(
            {
                "nodes": [_node(answer) for answer in answers],
                "pods": [{"node": node, **pod} for node, said in found.items() for pod in said["pods"]],
            }
        )
    else:
        _print_status(found)
    if _complain(answers):
        return UnreachableError.exit_code
    return 1 if any(map(is_bad, found.values())) else 0


def _node(answer: Answer[Any]) -> dict[str, Any]:
    if answer.value is None:
        return {"node": answer.node, "reachable": False, "error": str(answer.error)}
    return {"node": answer.node, "reachable": True, "error": None, **answer.value["node"]}


def _print_status(found: Mapping[str, Any]) -> None:
    print_table([(node, *row(pod)) for node, said in found.items() for pod in said["pods"]], (*_NODE, *HEADER))
    for node, said in found.items():
        for trouble in said["node"]["troubles"]:
            tell = print_error if trouble["fatal"] else print_warning
            tell(f"node {node}: {trouble['condition']}: {trouble['message']}")
    pods = [pod for said in found.values() for pod in said["pods"]]
    leaks = [said["node"]["leaks"] for said in found.values()]
    sums = {name: sum(leak[name] for leak in leaks) for name in ("connections", "bytes")}
    recent = {name: sum(leak[f"recent_{name}"] for leak in leaks) for name in ("connections", "bytes")}
    say(
        f"\n{len(found)} nodes, {len(pods)} pods, {sum(1 for pod in pods if pod['in_sync'])} in sync; "
        f"leaked since the agents' start: {leaked(sums['connections'], sums['bytes'])}, "
        f"in the last 10 minutes: {leaked(recent['connections'], recent['bytes'])}"
    )


# ── flows, top ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _look(fleet: Fleet, asked: Mapping[str, str]) -> tuple[list[_Flow], bool]:
    """Return the flows of all nodes, each with its node, sorted as *asked*, and whether a node gave no answer."""
    answers = list(fleet.ask(lambda api: ask_flows(api, asked)))
    flows = [{"node": answer.node, **flow} for answer in answers for flow in answer.value or ()]
    if key := asked.get("sort"):
        name = key.lstrip("-")
        flows.sort(key=lambda flow: (flow[name] is not None, flow[name]), reverse=key.startswith("-"))
    return flows, _complain(answers)


def _flows(arguments: argparse.Namespace) -> int:
    """Print the flows that match; 5 if a node gave no answer."""
    with _fleet(arguments, arguments.node) as fleet:
        flows, is_partial = _look(fleet, parameters(arguments))
    print_flows(flows, arguments.output, _NODE)
    return UnreachableError.exit_code if is_partial else 0


def _top(arguments: argparse.Namespace) -> int:
    """Print the busiest flows, again and again on a terminal; 5 if a node gave no answer at the last look."""
    is_partial = False

    def look(asked: Mapping[str, str]) -> list[_Flow]:
        nonlocal is_partial
        flows, is_partial = _look(fleet, asked)
        return flows

    with _fleet(arguments, arguments.node) as fleet:
        code = show_top(arguments, look, _NODE)
    return UnreachableError.exit_code if is_partial else code


# ── explain ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _explain(arguments: argparse.Namespace) -> int:
    """Print what happens to a connection of a pod, as the agent of its node says."""
    node = find_node(_kubectl(arguments), arguments.pod)
    with _fleet(arguments, node) as fleet:
        (answer,) = fleet.ask(lambda api: run_explain(argparse.Namespace(**vars(arguments), api=api, filename=None)))
    if answer.error:
        raise answer.error
    return answer.value or 0


# ── support ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _support(arguments: argparse.Namespace) -> int:
    """Write an archive of what a maintainer asks for; 5 if a node gave no answer."""
    kubectl = _kubectl(arguments)
    agents = find_agents(kubectl, arguments.agent_namespace, arguments.node)
    return UnreachableError.exit_code if collect(kubectl, agents, arguments) else 0
