"""One reader per field: takes a policy and a text, gives the policy with that field set.

The cluster's defaults and a pod's annotations go through the same readers, in this order:
ranges and ports that exclude are added to what is there, everything else replaces it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from nodeagent.model import Family, Mode, Network, Policy, PortRange, Ports, Ranges, Sourced
from nodeagent.policy.dialects import Field
from nodeagent.policy.grammar import (
    Text,
    parse_boolean,
    parse_interfaces,
    parse_owners,
    parse_port,
    parse_ports,
    parse_word,
)
from nodeagent.policy.ranges import Named, RangeList, check_width, describe_masked, parse_ranges, sort_ranges
from nodeagent.policy.warn import ineffective, limited

WORDS = {"enabled": Mode.ENFORCE, "observe": Mode.OBSERVE, "disabled": Mode.DISABLED}
"""What the annotation ``intercept`` may say."""


@dataclass(frozen=True, slots=True)
class Given:
    """What somebody wrote for a field.

    ``source`` says where, in words for people.  ``named`` are the ranges that ``@name`` may
    mean; ``widest`` is the guard on exclusions, by family, and empty where none applies.
    """

    text: Text
    source: str
    named: Named
    widest: Mapping[Family, int] = field(default_factory=dict)


Reading = tuple[Policy, tuple[str, ...]]
"""The policy that results, and warnings."""


def read_field(policy: Policy, name: Field, given: Given) -> Reading:
    """Return *policy* with the field *name* as *given*, and what is odd about it.

    Raises:
        RejectedError: the text is not what the field allows.
    """
    return _READERS[name](policy, given)


def _mode(policy: Policy, given: Given) -> Reading:
    mode = WORDS[parse_word(given.text, WORDS)]
    return replace(policy, mode=mode, sources=_replaced(policy, Field.MODE, given)), ()


def _include_ranges(policy: Policy, given: Given) -> Reading:
    listed = parse_ranges(given.text, given.named, wildcard=True)
    every = Sourced("*", given.source) if listed.every else None
    ranges = Ranges(sort_ranges(_sourced(listed, given)), every)
    sources = _replaced(policy, Field.INCLUDE_RANGES, given)
    return replace(policy, include_ranges=ranges, sources=sources), limited(describe_masked(listed))


def _exclude_ranges(policy: Policy, given: Given) -> Reading:
    listed = parse_ranges(given.text, given.named, wildcard=False)
    check_width(given.text, listed, given.widest)
    if not listed.items:
        return policy, ()
    ranges = Ranges(sort_ranges((*policy.exclude_ranges.items, *_sourced(listed, given))))
    sources = _added(policy, Field.EXCLUDE_RANGES, given, bool(policy.exclude_ranges.items))
    warnings = (*describe_masked(listed), *ineffective(item.network for item in listed.items if not item.name))
    return replace(policy, exclude_ranges=ranges, sources=sources), limited(warnings)


def _sourced(listed: RangeList, given: Given) -> tuple[Sourced[Network], ...]:
    return tuple(
        Sourced(item.network, f"{given.source} (@{item.name})" if item.name else given.source) for item in listed.items
    )


def _include_ports(policy: Policy, given: Given) -> Reading:
    ports = Ports(tuple(Sourced(ports, given.source) for ports in parse_ports(given.text)))
    return replace(policy, include_ports=ports, sources=_replaced(policy, Field.INCLUDE_PORTS, given)), ()


def _exclude_ports(policy: Policy, given: Given) -> Reading:
    unique: dict[PortRange, Sourced[PortRange]] = {item.value: item for item in policy.exclude_ports.items}
    for ports in parse_ports(given.text):
        unique.setdefault(ports, Sourced(ports, given.source))
    if len(unique) == len(policy.exclude_ports.items):
        return policy, ()
    sources = _added(policy, Field.EXCLUDE_PORTS, given, bool(policy.exclude_ports.items))
    return replace(policy, exclude_ports=Ports(tuple(unique[ports] for ports in sorted(unique))), sources=sources), ()


def _exclude_interfaces(policy: Policy, given: Given) -> Reading:
    unique = {item.value: item for item in policy.exclude_interfaces}
    for name in parse_interfaces(given.text):
        unique.setdefault(name, Sourced(name, given.source))
    if len(unique) == len(policy.exclude_interfaces):
        return policy, ()
    sources = _added(policy, Field.EXCLUDE_INTERFACES, given, bool(policy.exclude_interfaces))
    return replace(policy, exclude_interfaces=tuple(unique[n] for n in sorted(unique)), sources=sources), ()


def _proxy_port(policy: Policy, given: Given) -> Reading:
    return replace(policy, proxy_port=parse_port(given.text), sources=_replaced(policy, Field.PROXY_PORT, given)), ()


def _proxy_uids(policy: Policy, given: Given) -> Reading:
    uids = parse_owners(given.text)
    return replace(policy, proxy_uids=uids, sources=_replaced(policy, Field.PROXY_UIDS, given)), _root("uid", uids)


def _proxy_gids(policy: Policy, given: Given) -> Reading:
    gids = parse_owners(given.text)
    return replace(policy, proxy_gids=gids, sources=_replaced(policy, Field.PROXY_GIDS, given)), _root("gid", gids)


def _root(kind: str, numbers: tuple[int, ...]) -> tuple[str, ...]:
    return (f"{kind} 0 counts as the proxy: everything that runs as root bypasses it",) if 0 in numbers else ()


def _dns_capture(policy: Policy, given: Given) -> Reading:
    capture = parse_boolean(given.text)
    return replace(policy, dns_capture=capture, sources=_replaced(policy, Field.DNS_CAPTURE, given)), ()


def _replaced(policy: Policy, name: Field, given: Given) -> Mapping[str, str]:
    return {**policy.sources, name.value: given.source}


def _added(policy: Policy, name: Field, given: Given, beside: bool) -> Mapping[str, str]:  # noqa: FBT001  # private
    source = f"{policy.sources[name.value]}, {given.source}" if beside else given.source
    return {**policy.sources, name.value: source}


_READERS: Mapping[Field, Callable[[Policy, Given], Reading]] = {
    Field.MODE: _mode,
    Field.INCLUDE_RANGES: _include_ranges,
    Field.EXCLUDE_RANGES: _exclude_ranges,
    Field.INCLUDE_PORTS: _include_ports,
    Field.EXCLUDE_PORTS: _exclude_ports,
    Field.EXCLUDE_INTERFACES: _exclude_interfaces,
    Field.PROXY_PORT: _proxy_port,
    Field.PROXY_UIDS: _proxy_uids,
    Field.PROXY_GIDS: _proxy_gids,
    Field.DNS_CAPTURE: _dns_capture,
}
