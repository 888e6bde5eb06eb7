"""Whether the agent does its work, and what is in its way: for ``/readyz``, ``status`` and people."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nodeagent.agent.census import boot_seconds
from nodeagent.agent.loop import Agent
from nodeagent.agent.pod import Stage

_NEARLY_FULL = 0.8

CONDITIONS: Final = (
    "pods",
    "api",
    "nri",
    "programmer",
    "enrolment",
    "counting",
    "uncounted",
    "state",
    "pins",
    "hooks",
    "lost_updates",
    "map",
    "configuration",
    "manifest",
    "conntrack",
    "sidecar",
    "names",
)
"""All that a trouble may be called: a closed set, and a metric's label."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is wrong.  A ``fatal`` one means that something does not work; others deserve attention."""

    condition: str
    message: str
    fatal: bool = True


def troubles(agent: Agent) -> list[Trouble]:
    """Return what is wrong now; nothing fatal in it means ready."""
    return [*_programming(agent), *_counting(agent), *_attention(agent)]


def _programming(agent: Agent) -> Iterator[Trouble]:
    if agent.manifests and agent.manifests.problem:
        yield Trouble("pods", agent.manifests.problem)
    if agent.cluster and agent.cluster.problem:  # what was known stays: only to know nothing at all is fatal
        yield Trouble("api", agent.cluster.problem, fatal=not (agent.cluster.is_known or agent.hears_runtime))
    if agent.sandboxes and agent.sandboxes.problem:
        yield Trouble("nri", agent.sandboxes.problem, fatal=False)
    if not agent.attendance.ready.is_set():
        yield Trouble("programmer", f"no programmer: {agent.attendance.problem}; rules and counters stay")
    waiting = sum(1 for pod in agent.roster if not (pod.is_known or pod.detail) and pod.stage is Stage.PENDING)
    if waiting:
        yield Trouble("enrolment", f"{waiting} pods were not looked at yet")


def _counting(agent: Agent) -> Iterator[Trouble]:
    if agent.enrolment.problem:
        yield Trouble("counting", agent.enrolment.problem)
    uncounted = [pod for pod in agent.roster if pod.counted.uncounted]
    if uncounted and not agent.enrolment.problem:
        first = uncounted[0]
        message = f"{len(uncounted)} pods are intercepted and not counted: {first.key}: {first.counted.uncounted}"
        yield Trouble("uncounted", message, fatal=False)
    if problem := agent.state_problem:
        yield Trouble("state", problem)
    health = agent.census.health
    if health.unpinned:
        message = f"counting goes on, and would not outlive the programmer: {health.unpinned}"
        yield Trouble("pins", message, fatal=False)
    for name, why in health.refused.items():
        yield Trouble("hooks", f"this kernel refuses {name}, and counts without it: {why}", fatal=False)
    if agent.census.lost_updates.is_recent(boot_seconds()):
        message = f"{health.lost_updates} packets could not be attributed, the last within 10 minutes: the map was full"
        yield Trouble("lost_updates", message, fatal=False)
    if health.capacity and health.entries > _NEARLY_FULL * health.capacity:
        yield Trouble("map", f"{health.entries} of {health.capacity} slots are in use", fatal=False)


def _attention(agent: Agent) -> Iterator[Trouble]:
    if agent.configuration_problem:
        yield Trouble("configuration", f"the last good one is in force: {agent.configuration_problem}", fatal=False)
    for problem in agent.roster.problems.values():
        yield Trouble("manifest", problem, fatal=False)
    for pod in agent.roster:
        count, limit = pod.tracked
        if limit and count > _NEARLY_FULL * limit:
            yield Trouble(
                "conntrack", f"{pod.key}: {count} of {limit} connections tracked: new ones will be dropped", fatal=False
            )
    if agent.cluster and agent.cluster.services.problem:
        yield Trouble("names", agent.cluster.services.problem, fatal=False)
    silent = [pod for pod in agent.roster if pod.unanswered]
    if silent:
        more = f", and {len(silent) - 1} other pods" if len(silent) > 1 else ""
        yield Trouble("sidecar", f"{silent[0].key}: {silent[0].unanswered}{more}", fatal=False)


@dataclass(frozen=True, slots=True)
class Promise:
    """What tells of pods that start, and what that is worth."""

    source: str
    promise: str


def promise(agent: Agent) -> Promise:
    """Return when a pod's rules stand on this node, as things are now."""
    if agent.hears_runtime:
        runtime = agent.sandboxes.runtime if agent.sandboxes else None
        name = f"{runtime.name} {runtime.version}".strip() if runtime else ""
        return Promise("nri", f"before its first container exists: {name or 'the container runtime'} waits for us")
    if agent.cluster and agent.options.cgroups and agent.options.netns_dir:
        return Promise("cgroups", "milliseconds after its sandbox: nobody waits for us, and what leaks is counted")
    if agent.cluster:
        return Promise("api", "seconds after its start, when the API server knows its address: what leaks is counted")
    return Promise("directory", "once a manifest names it")
