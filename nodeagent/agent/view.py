"""What the agent knows, as JSON-ready data: the shapes that the API promises."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from nodeagent.agent.census import boot_seconds
from nodeagent.agent.health import promise, troubles
from nodeagent.agent.loop import Agent
from nodeagent.agent.pod import Pod, Stage
from nodeagent.decide import decide
from nodeagent.decide import describe as describe_decision
from nodeagent.errors import InputError
from nodeagent.ledger import Flow, Leaked
from nodeagent.model import Connection, Decision, Reason, Verdict
from nodeagent.policy import Configuration

Json = dict[str, Any]


def flows(agent: Agent, within: float = float("inf")) -> Sequence[Flow]:
    """Return all flows as of now that were active *within* so many seconds."""
    agent.census.look()
    return agent.census.ledger.flows(boot_seconds() - within)


def pods(agent: Agent) -> list[Json]:
    """Return all pods, by name, as of the last look at the slots."""
    leaks = agent.census.ledger.leaks(boot_seconds())
    return [describe_pod(pod, leaks) for pod in sorted(agent.roster, key=lambda pod: pod.key)]


def describe_pod(pod: Pod, leaks: Mapping[int, Leaked]) -> Json:
    """Return what the API says of *pod*; *leaks* is by the kernel's number of pods."""
    leaked = leaks.get(pod.counted.id, Leaked())
    since = pod.in_force_since
    return {
        "namespace": pod.key.namespace,
        "pod": pod.key.name,
        "uid": pod.manifest.uid,
        "source": pod.source.value,
        "late": pod.is_late,
        "mode": pod.wanted.policy.mode.value,
        "state": "draining" if pod.retiring else pod.stage.value,
        "detail": pod.detail or pod.unanswered,
        "answered": None if pod.listens is None or not pod.is_settled else not pod.unanswered,
        "ruleset_id": pod.ruleset_id,
        "epoch": pod.counted.epoch if pod.counted.id else None,
        "age_seconds": None if since is None else round(time.monotonic() - since, 1),
        "in_sync": pod.in_sync if pod.wanted.ruleset else None,
        "out_of_sync": is_out_of_sync(pod),
        "repairs": pod.repairs,
        "counted_by": ("cgroup" if pod.counted.cgroup else "netns") if pod.counted.told else None,
        "guard": asdict(pod.guard) if pod.guard else None,
        "containers": sorted(set(pod.counted.containers.values())),
        "rejected": [{"key": r.key, "reason": r.reason.value, "message": r.message} for r in pod.rejected],
        "leaks": leaked._asdict(),
    }


def is_out_of_sync(pod: Pod) -> bool:
    """Say whether it should hold rules and does not; one that is only watched, left alone or going should not."""
    should = pod.wanted.ruleset is not None and pod.stage not in (Stage.OBSERVED, Stage.SKIPPED) and not pod.retiring
    return should and not pod.in_sync


def roll_call(agent: Agent) -> Json:
    """Return how many pods there are, how many of them are out of sync, and how many are in each state."""
    pods = list(agent.roster)
    states = Counter("draining" if pod.retiring else pod.stage.value for pod in pods)
    return {"total": len(pods), "out_of_sync": sum(map(is_out_of_sync, pods)), "states": dict(sorted(states.items()))}


def node(agent: Agent) -> Json:
    """Return the node's own state, as of the last look at the slots."""
    found = troubles(agent)
    return {
        "ready": not any(trouble.fatal for trouble in found),
        "starts": asdict(promise(agent)),
        "troubles": [asdict(trouble) for trouble in found],
        "leaks": agent.census.ledger.leaked(boot_seconds())._asdict(),
        "drift_repairs": agent.facts.drift_repairs,
    }


def configuration(agent: Agent) -> Json:
    """Return the configuration in force, and what is wrong with a later one."""
    current = agent.roster.configuration
    return {
        "settings": _settings(current),
        "warnings": list(current.warnings),
        "problem": agent.configuration_problem,
        "file": agent.options.config,
    }


def _settings(current: Configuration) -> Json:
    found: Json = msgspec.to_builtins(current.settings)
    return found


def explain(  # noqa: PLR0913  # a question has that many parts
    agent: Agent, namespace: str, name: str, connection: Connection, seen: Sequence[Flow], *, own: bool
) -> Json:
    """Return what happens to *connection* of a pod, why, and what was observed of it among the flows *seen*.

    *own* asks to find out from the pod's addresses whether it leaves through ``lo``.

    Raises:
        InputError: there is no such pod here.
    """
    pod = agent.roster.find(namespace, name)
    if pod is None:
        raise InputError(f"no pod {namespace}/{name} on this node")
    if own and (connection.destination in pod.manifest.pod_ips or connection.destination.is_loopback):
        connection = Connection(
            connection.destination, connection.port, connection.protocol, connection.uid, connection.gid, "lo"
        )
    policy = pod.wanted.policy
    decision = decide(policy, connection)
    head = {"pod": str(pod.key), "mode": policy.mode.value, "observed": _observed(seen, pod, connection)}
    if pod.record().enforced:
        return {**head, **describe_decision(decision)}
    source = pod.detail or policy.sources.get("mode", "default")
    unmanaged = Decision(Verdict.BYPASSED, Reason.OBSERVED, "nothing of ours is programmed", source)
    return {**head, **describe_decision(unmanaged), "would": describe_decision(decision)}


def _observed(seen: Sequence[Flow], pod: Pod, connection: Connection) -> list[Json]:
    wanted = str(connection.destination), connection.port, connection.protocol.value
    return [
        flow._asdict()
        for flow in seen
        if (flow.namespace, flow.pod) == pod.key[:2] and (flow.address, flow.port, flow.protocol) == wanted
    ]
