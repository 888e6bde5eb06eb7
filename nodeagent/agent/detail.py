"""One pod in full, as JSON-ready data: its policy with the source of each value, and its rules as text.

Bounded: a list of ten thousand ranges is counted, and its beginning shown.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from nodeagent.agent.census import boot_seconds
from nodeagent.agent.loop import Agent
from nodeagent.agent.pod import Pod
from nodeagent.agent.view import Json, describe_pod
from nodeagent.compile.listing import print_rules
from nodeagent.errors import InputError
from nodeagent.model import BackendName, Policy, Sourced

MOST_VALUES: Final = 100
"""Values of a field that are shown."""
MOST_LINES: Final = 400
"""Lines of the rules' text that are shown."""

_LISTS: Final = ("include_ranges", "exclude_ranges", "include_ports", "exclude_ports", "exclude_interfaces")


def pod_in_full(agent: Agent, namespace: str, name: str) -> Json:
    """Return all that is known of a pod.

    Raises:
        InputError: there is no such pod here.
    """
    pod = agent.roster.find(namespace, name)
    if pod is None:
        raise InputError(f"no pod {namespace}/{name} on this node")
    resolution = pod.wanted.resolution
    return {
        **describe_pod(pod, agent.census.ledger.leaks(boot_seconds())),
        "backend": pod.backend,
        "addresses": [str(address) for address in pod.manifest.pod_ips],
        "source": pod.source.value,
        "foreign": list(pod.foreign),
        "policy": list(_fields(resolution.policy)),
        "warnings": list(resolution.warnings),
        "unknown_keys": list(resolution.unknown_keys),
        **_rules(pod),
    }


def _fields(policy: Policy) -> Iterator[Json]:
    """Yield each field of *policy*: its values, how many there are, and where each came from."""
    for name in policy.sources:
        values = list(_sourced(policy, name))
        shown = [{"value": each.value, "source": each.source} for each in values[:MOST_VALUES]]
        yield {"field": name, "source": policy.sources[name], "values": shown, "count": len(values)}


def _sourced(policy: Policy, name: str) -> Iterator[Sourced[str]]:
    value = getattr(policy, name)
    if name in _LISTS:
        every = getattr(value, "every", None)
        items: Iterable[Sourced[object]] = (every,) if every else getattr(value, "items", value)
        yield from (Sourced(str(item.value), item.source) for item in items)
        return
    for each in value if isinstance(value, tuple) else (value,):
        text = str(each).lower() if isinstance(each, bool) else str(each)
        yield Sourced(text, policy.sources[name])


def _rules(pod: Pod) -> Json:
    if pod.wanted.ruleset is None:
        return {"rules": [], "rules_cut": False}
    lines = list(islice(print_rules(pod.wanted.ruleset, BackendName(pod.backend or BackendName.NFT)), MOST_LINES + 1))
    return {"rules": lines[:MOST_LINES], "rules_cut": len(lines) > MOST_LINES}
