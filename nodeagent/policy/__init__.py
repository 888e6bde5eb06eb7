"""Annotations and the cluster configuration into a policy.  Pure: no I/O, no clock, no logging.

Promises: any annotations become a policy; what was refused, and why, stands beside it.  Refuses
half measures: where one of a pod's values is refused, none of the pod's annotations counts, and
the cluster's configuration holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nodeagent.model import Mode, PodManifest, Policy, Ports, Ranges
from nodeagent.policy.configuration import DEFAULT, Configuration, read_configuration
from nodeagent.policy.dialects import Field, recognise
from nodeagent.policy.fields import Given, read_field
from nodeagent.policy.grammar import RejectedError, Rejection, RejectionReason, Text
from nodeagent.policy.opting import Keys, OptIn, Skip, deciding_keys, opt_in
from nodeagent.policy.warn import warn

__all__ = [
    "DEFAULT",
    "Configuration",
    "Keys",
    "OptIn",
    "Rejection",
    "RejectionReason",
    "Resolution",
    "Skip",
    "deciding_keys",
    "describe",
    "opt_in",
    "read_configuration",
    "resolve",
    "resolve_pod",
]

_SUSPENDED = "configuration suspend"
_NONE_COUNTS = "none of the pod's annotations counts, because a value was refused: the cluster's configuration holds"


@dataclass(frozen=True)
class Resolution:
    """What a pod's annotations were understood to mean.

    ``rejected`` holds one entry per bad key; if there is any, ``policy`` is the cluster's.
    ``unknown_keys`` are misspelt keys of our own, escaped and cut.
    """

    policy: Policy
    warnings: tuple[str, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    unknown_keys: tuple[str, ...] = ()


def resolve(
    annotations: Mapping[str, str], configuration: Configuration = DEFAULT, base: Policy | None = None
) -> Resolution:
    """Return the policy of a pod with these *annotations*, whoever wrote them.

    They are read on top of *base*, which holds if one of them is refused; without one, of the cluster's policy.

    >>> found = resolve({"nodeagent.io/excludeOutboundPorts": "3306,99999"})
    >>> found.rejected[0].position, found.policy == DEFAULT.policy
    (2, True)
    """
    recognised = recognise(annotations, configuration.settings.dialects)
    base = base or configuration.policy
    policy = base
    warnings = list(recognised.warnings)
    rejected: list[Rejection] = []
    for name in Field:
        if key := recognised.keys.get(name):
            try:
                policy, advice = read_field(policy, name, _given(key, annotations[key], configuration))
            except RejectedError as error:
                rejected.append(error.rejection)
            else:
                warnings.extend(f"{key}: {warning}" for warning in advice)
    if rejected:
        policy = base
        warnings = [*recognised.warnings, _NONE_COUNTS]
    if configuration.settings.suspend and policy.mode is Mode.ENFORCE:
        policy = replace(policy, mode=Mode.OBSERVE, sources={**policy.sources, Field.MODE.value: _SUSPENDED})
    return Resolution(policy, (*warnings, *warn(policy)), tuple(rejected), recognised.unknown_keys)


def resolve_pod(pod: PodManifest, configuration: Configuration = DEFAULT) -> tuple[OptIn, Resolution]:
    """Return whether a pod of a cluster is ours, and its policy; that of a skipped one is in mode DISABLED."""
    opted = opt_in(pod, configuration)
    found = resolve(pod.annotations, configuration, opted.base)
    return opted, replace(found, policy=opted.bound(found.policy), warnings=(*opted.warnings, *found.warnings))


def _given(key: str, value: str, configuration: Configuration) -> Given:
    return Given(Text(key, value), f"annotation {key}", configuration.ranges, configuration.widest_exclude)


def describe(resolution: Resolution) -> dict[str, object]:
    """Return *resolution* as JSON-ready data, for people and scripts.

    >>> describe(resolve({}))["include_ranges"]
    ['*']
    """
    policy = resolution.policy
    return {
        "mode": policy.mode.value,
        "include_ranges": _range_texts(policy.include_ranges),
        "exclude_ranges": _range_texts(policy.exclude_ranges),
        "include_ports": _port_texts(policy.include_ports),
        "exclude_ports": _port_texts(policy.exclude_ports),
        "exclude_interfaces": [item.value for item in policy.exclude_interfaces],
        "proxy_port": policy.proxy_port,
        "proxy_uids": list(policy.proxy_uids),
        "proxy_gids": list(policy.proxy_gids),
        "dns_capture": policy.dns_capture,
        "dns_port": policy.dns_port,
        "ipv6": policy.ipv6.value,
        "sources": dict(policy.sources),
        "warnings": list(resolution.warnings),
        "rejected": [_describe_rejection(rejection) for rejection in resolution.rejected],
        "unknown_keys": list(resolution.unknown_keys),
    }


def _range_texts(ranges: Ranges) -> list[str]:
    return ["*"] if ranges.every else [str(network) for network in ranges]


def _port_texts(ports: Ports) -> list[str]:
    return [str(item) for item in ports]


def _describe_rejection(rejection: Rejection) -> dict[str, object]:
    return {
        "key": rejection.key,
        "reason": rejection.reason.value,
        "entry": rejection.entry,
        "message": rejection.message,
        "position": rejection.position,
    }
