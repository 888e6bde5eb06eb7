"""``kubectl nodeagent support``: what the agents say, what the cluster says of them, and their logs, in one archive."""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Final

from nodeagent.cli.archive import Item, Keep, as_json
from nodeagent.cli.output import print_warning
from nodeagent.cli.support import about, agent_items, save
from nodeagent.errors import NodeagentError
from nodeagent.plugin.fleet import AgentPod
from nodeagent.plugin.kubectl import Kubectl

_MOST_NODES: Final = 20
_LOG_LINES: Final = 5000
_LOG_BYTES: Final = 4 << 20
_DOCTOR_SECONDS: Final = 90.0
_DOCTOR: Final = "nodeagent doctor --output=json --cgroup=/host/cgroup; true"  # its exit code is in what it says


def collect(kubectl: Kubectl, agents: Sequence[AgentPod], arguments: argparse.Namespace) -> bool:
    """Write the archive, and return whether a node's agent gave no answer.

    Raises:
        InputError: it cannot be written.
    """
    if len(agents) > _MOST_NODES:
        print_warning(f"{len(agents)} nodes: the first {_MOST_NODES} are asked; --node chooses one")
    name = arguments.node or "cluster"
    folder = f"nodeagent-support-{name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    entries = save(arguments, folder, _items(kubectl, agents[:_MOST_NODES], arguments))
    return any(entry.error for entry in entries if entry.name.endswith("/agent/status.json"))


def _items(kubectl: Kubectl, agents: Sequence[AgentPod], arguments: argparse.Namespace) -> Iterator[Item]:
    yield Item("about.json", about)
    yield from _cluster_items(kubectl, arguments.agent_namespace)
    for agent in agents:
        for item in _node_items(kubectl, agent, arguments):
            yield replace(item, name=f"nodes/{agent.node}/{item.name}")


def _cluster_items(kubectl: Kubectl, namespace: str) -> Iterator[Item]:
    yield Item("cluster/version.json", partial(kubectl.read, "version", "--output=json"))
    yield Item("cluster/nodes.json", lambda: as_json([_node(item) for item in kubectl.get("nodes")["items"]]))
    for kind in ("daemonset", "configmap", "pods", "events"):
        words = ("get", kind, f"--namespace={namespace}", "--output=json")
        yield Item(f"cluster/{kind}.json", partial(kubectl.read, *words))


def _node(item: dict[str, Any]) -> dict[str, Any]:
    """Return what matters of a node."""
    status = item["status"]
    return {
        "name": item["metadata"]["name"],
        "info": status.get("nodeInfo"),
        "allocatable": status.get("allocatable"),
        "conditions": {condition["type"]: condition["status"] for condition in status.get("conditions", ())},
        "taints": item["spec"].get("taints", []),
    }


def _node_items(kubectl: Kubectl, agent: AgentPod, arguments: argparse.Namespace) -> Iterator[Item]:
    with ExitStack() as tunnels:
        try:
            inner, outer = (
                tunnels.enter_context(kubectl.tunnel(agent.namespace, agent.name, port))
                for port in (arguments.agent_port, agent.metrics_port)
            )
        except NodeagentError as error:
            yield Item("agent/status.json", partial(_fail, error))
        else:
            yield from agent_items(inner, outer, with_flows=arguments.flows)
    place = (agent.name, f"--namespace={agent.namespace}")
    for container in agent.containers:
        for name, more in ((container, ()), (f"{container}.previous", ("--previous",))):
            words = ("logs", *place, f"--container={container}", f"--tail={_LOG_LINES}", f"--limit-bytes={_LOG_BYTES}")
            yield Item(f"logs/{name}.txt", partial(kubectl.read, *words, *more), Keep.TAIL)
    if "programmer" in agent.containers:
        doctor = ("exec", *place, "--container=programmer", "--", "sh", "-c", _DOCTOR)
        yield Item("doctor.json", partial(kubectl.read, *doctor, seconds=_DOCTOR_SECONDS))


def _fail(error: NodeagentError) -> bytes:
    raise error
