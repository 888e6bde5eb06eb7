"""The agents of a cluster: which there are, and one question to many of them at a time."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, Generic, Self, TypeVar

from nodeagent.errors import InputError, NodeagentError, UnreachableError
from nodeagent.plugin.kubectl import Kubectl

T = TypeVar("T")

SELECTOR: Final = "app.kubernetes.io/name=nodeagent"
_AT_ONCE: Final = 8
"""Tunnels that are opened, and questions that are asked, at a time."""


@dataclass(frozen=True, slots=True)
class AgentPod:
    """The agent of *node*: the name of its pod, and whether it runs."""

    node: str
    name: str
    namespace: str
    is_running: bool
    containers: tuple[str, ...] = ()
    metrics_port: int = 9640


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What the agent of *node* said, or why it said nothing."""

    node: str
    value: T | None = None
    error: NodeagentError | None = None


def find_agents(kubectl: Kubectl, namespace: str, node: str | None) -> list[AgentPod]:
    """Return the agents in *namespace* by node, or that of *node*.

    Raises:
        InputError: there is none.
        UnreachableError: the cluster does not tell.
    """
    chosen = (f"--field-selector=spec.nodeName={node}",) if node else ()
    found = kubectl.get("pods", f"--namespace={namespace}", f"--selector={SELECTOR}", *chosen)
    pods = [_agent_pod(item) for item in found["items"] if item["spec"].get("nodeName")]
    # While an agent is replaced there are two pods; the one that runs is asked.
    by_node = {pod.node: pod for pod in sorted(pods, key=lambda pod: pod.is_running)}
    if not by_node:
        where = f"of node {node} " if node else ""
        raise InputError(f"no agent {where}in namespace {namespace}: give theirs with --agent-namespace")
    return [by_node[name] for name in sorted(by_node)]


def _agent_pod(item: dict[str, Any]) -> AgentPod:
    metadata, status, containers = item["metadata"], item.get("status", {}), item["spec"]["containers"]
    ports = [port for container in containers for port in container.get("ports", ())]
    return AgentPod(
        node=item["spec"]["nodeName"],
        name=metadata["name"],
        namespace=metadata["namespace"],
        is_running=status.get("phase") == "Running" and "deletionTimestamp" not in metadata,
        containers=tuple(container["name"] for container in containers),
        metrics_port=next((port["containerPort"] for port in ports if port.get("name") == "metrics"), 9640),
    )


def find_node(kubectl: Kubectl, pod: str) -> str:
    """Return the node of the pod *pod* (NAMESPACE/NAME).

    Raises:
        InputError: there is no such pod, or it has no node yet.
    """
    namespace, _, name = pod.partition("/")
    if not (namespace and name):
        raise InputError(f"--pod {pod}: give NAMESPACE/NAME")
    node: str | None = kubectl.get("pod", name, f"--namespace={namespace}")["spec"].get("nodeName")
    if not node:
        raise InputError(f"{pod} has no node yet")
    return node


class Fleet:
    """Tunnels to agents, open for the length of a block; those that cannot be had are errors in the answers."""

    def __init__(self, kubectl: Kubectl, agents: Sequence[AgentPod], port: int) -> None:
        self._kubectl, self._agents, self._port = kubectl, agents, port
        self._tunnels: dict[str, str | NodeagentError] = {}
        self._stack = ExitStack()
        self._pool = ThreadPoolExecutor(_AT_ONCE)

    def __enter__(self) -> Self:
        self._stack.callback(self._pool.shutdown)
        try:
            self._tunnels = dict(self._pool.map(self._open, self._agents))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, agent: AgentPod) -> tuple[str, str | NodeagentError]:
        if not agent.is_running:
            return agent.node, UnreachableError(f"{agent.namespace}/{agent.name} does not run")
        try:
            return agent.node, self._stack.enter_context(self._kubectl.tunnel(agent.namespace, agent.name, self._port))
        except NodeagentError as error:
            return agent.node, error

    def ask(self, question: Callable[[str], T]) -> Iterator[Answer[T]]:
        """Yield each agent's answer to *question*, which is called with HOST:PORT; in order of nodes.

        Raises:
            InputError: the question makes no sense.
        """

        def one(node: str) -> Answer[T]:
            place = self._tunnels[node]
            if isinstance(place, NodeagentError):
                return Answer(node, error=place)
            try:
                return Answer(node, question(place))
            except UnreachableError as error:
                return Answer(node, error=error)

        return self._pool.map(one, [agent.node for agent in self._agents])
