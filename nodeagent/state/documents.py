"""Policies and pod records as JSON, without loss: what is read back equals what was written.

The text is canonical and pure ASCII, whatever a pod's owner wrote.  Reading refuses, with an
:class:`InputError`, what writing would not have produced.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from typing import Any, Final, TypeVar

from nodeagent.errors import InputError
from nodeagent.model import Ipv6Mode, Mode, PodName, PodRecord, Policy, PortRange, Ports, Ranges, Sourced

ID_DIGITS: Final = 32
"""128 bits of SHA-256: a pod's owner cannot make two policies of one id."""

T = TypeVar("T")


def identify(document: str) -> str:
    """Return the id under which pods share a policy's *document*."""
    return hashlib.sha256(document.encode("ascii")).hexdigest()[:ID_DIGITS]


def write_policy(policy: Policy) -> str:
    """Return *policy* as JSON, its sources included."""
    ranges = {name: _write_ranges(getattr(policy, name)) for name in ("include_ranges", "exclude_ranges")}
    ports = {
        name: [[item.value.first, item.value.last, item.source] for item in getattr(policy, name).items]
        for name in ("include_ports", "exclude_ports")
    }
    plain = {name: getattr(policy, name) for name in ("proxy_port", "dns_capture", "dns_port")}
    return _write(
        plain
        | ranges
        | ports
        | {
            "mode": policy.mode.value,
            "ipv6": policy.ipv6.value,
            "exclude_interfaces": [[item.value, item.source] for item in policy.exclude_interfaces],
            "proxy_uids": list(policy.proxy_uids),
            "proxy_gids": list(policy.proxy_gids),
            "sources": dict(policy.sources),
        }
    )


def read_policy(document: str) -> Policy:
    """Return the policy that :func:`write_policy` wrote.

    Raises:
        InputError: nobody wrote *document* like this.
    """
    return _read("policy", document, _policy, write_policy)


def write_record(record: PodRecord, policy_id: str) -> str:
    """Return *record* as JSON, but for its policies, which are kept by id."""
    name = record.name
    return _write(
        {
            "name": [name.namespace, name.name, name.uid],
            "id": record.id,
            "policy": policy_id,
            "enforced": record.enforced,
            "redirected_by_other": record.redirected_by_other,
            "containers": {str(number): text for number, text in record.containers.items()},
            "sidecars": sorted(record.sidecars),
            "interfaces": {str(number): text for number, text in record.interfaces.items()},
            "netns": record.netns,
            "late": record.late,
        }
    )


def read_record(document: str, policies: Mapping[str, Policy], epochs: Mapping[int, str]) -> PodRecord:
    """Return the record that :func:`write_record` wrote; *epochs* maps its epochs to policy ids.

    Raises:
        InputError: nobody wrote *document* like this, or a policy is missing.
    """

    def make(body: Mapping[str, Any]) -> PodRecord:
        return PodRecord(
            name=PodName(*body["name"]),
            id=body["id"],
            policy=policies[body["policy"]],
            enforced=body["enforced"],
            redirected_by_other=body["redirected_by_other"],
            epochs={epoch: policies[policy] for epoch, policy in epochs.items()},
            containers={int(number): text for number, text in body["containers"].items()},
            sidecars=frozenset(body["sidecars"]),
            interfaces={int(number): text for number, text in body["interfaces"].items()},
            netns=body["netns"],
            late=body.get("late", False),  # records of an agent that did not know yet
        )

    return _read("pod", document, make, None)


def _policy(body: Mapping[str, Any]) -> Policy:
    return Policy(
        mode=Mode(body["mode"]),
        include_ranges=_ranges(body["include_ranges"]),
        exclude_ranges=_ranges(body["exclude_ranges"]),
        include_ports=_ports(body["include_ports"]),
        exclude_ports=_ports(body["exclude_ports"]),
        exclude_interfaces=tuple(Sourced(name, source) for name, source in body["exclude_interfaces"]),
        proxy_port=body["proxy_port"],
        proxy_uids=tuple(body["proxy_uids"]),
        proxy_gids=tuple(body["proxy_gids"]),
        dns_capture=body["dns_capture"],
        dns_port=body["dns_port"],
        ipv6=Ipv6Mode(body["ipv6"]),
        sources=body["sources"],
    )


def _write_ranges(ranges: Ranges) -> dict[str, Any]:
    every = ranges.every and [ranges.every.value, ranges.every.source]
    return {"every": every, "items": [[str(item.value), item.source] for item in ranges.items]}


def _ranges(body: Mapping[str, Any]) -> Ranges:
    items = tuple(Sourced(ip_network(text), source) for text, source in body["items"])
    return Ranges(items, Sourced(*body["every"]) if body["every"] else None)


def _ports(body: list[list[Any]]) -> Ports:
    return Ports(tuple(Sourced(PortRange(first, last), source) for first, last, source in body))


def _write(body: Mapping[str, Any]) -> str:
    return json.dumps(body, separators=(",", ":"), sort_keys=True)


def _read(what: str, document: str, make: Callable[[Mapping[str, Any]], T], write: Callable[[T], str] | None) -> T:
    try:
        made = make(json.loads(document))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"not a {what} as the agent keeps it: {error!r}") from None
    if write and write(made) != document:
        raise InputError(f"not a {what} as the agent keeps it: its text is not canonical")
    return made
