"""What is allowed, and yet hardly meant: warnings for people.  They change nothing."""

from collections.abc import Iterable, Sequence
from ipaddress import ip_network

from nodeagent.model import DNS_PORT, Family, Network, Policy, Ports, Ranges, Sourced
from nodeagent.policy.grammar import HIGHEST_PORT
from nodeagent.policy.ranges import address_union, covers, merge_intervals

MOST = 16
"""Warnings of one value: beyond them, a number."""

_INEFFECTIVE = (
    ("127.0.0.0/8", "loopback, which is not intercepted (save by DNS capture or an include of it)"),
    ("::1/128", "loopback, which is not intercepted (save by DNS capture or an include of it)"),
    ("224.0.0.0/4", "multicast, which no TCP connection goes to"),
    ("ff00::/8", "multicast, which no TCP connection goes to"),
)
_EVERYWHERE = Ranges(every=Sourced("*", "every address"))
_NO_EFFECT = tuple((ip_network(block), why) for block, why in _INEFFECTIVE)


def limited(warnings: Sequence[str]) -> tuple[str, ...]:
    """Return the first of *warnings*, and how many more there were."""
    if len(warnings) <= MOST:
        return tuple(warnings)
    return (*warnings[:MOST], f"{len(warnings) - MOST} more warnings of this kind")


def ineffective(networks: Iterable[Network]) -> tuple[str, ...]:
    """Return a warning for each of *networks* whose exclusion changes nothing."""
    return tuple(
        f"excluding {network} has no effect: it is {why}"
        for network in dict.fromkeys(networks)
        for block, why in _NO_EFFECT
        if network.version == block.version and network.subnet_of(block)  # type: ignore[arg-type]  # versions are equal
    )


def warn(policy: Policy) -> tuple[str, ...]:
    """Return what is odd about *policy* as a whole, whatever it came from."""
    warnings: list[str] = []
    if policy.include_ranges.every and policy.include_ports.items:
        warnings.append("included ports have no effect beside '*', which includes every port: exclude ports, or ranges")
    warnings.extend(_one_family_left_out(policy.include_ranges))
    if policy.dns_capture and policy.exclude_ports.find(DNS_PORT):
        warnings.append(f"DNS capture has no effect: port {DNS_PORT} is excluded, and exclusion always wins")
    elif not policy.dns_capture and (why := _nothing_intercepted(policy)):
        warnings.append(f"nothing is intercepted: {why}")
    return tuple(warnings)


def _one_family_left_out(included: Ranges) -> Iterable[str]:
    if included.every:
        return
    for whole, other in ((Family.V4, Family.V6), (Family.V6, Family.V4)):
        if not included.of(other) and covers(address_union(included, whole), _all_addresses(whole)):
            yield f"every IPv{whole} address is included, and no IPv{other} one: IPv{other} bypasses; '*' includes both"


def _all_addresses(family: Family) -> list[tuple[int, int]]:
    return [(0, (1 << family.bits) - 1)]


def _nothing_intercepted(policy: Policy) -> str | None:
    """Say why no TCP connection can be intercepted, if so."""
    excluded = policy.exclude_ports
    if covers(_port_union(excluded), [(1, HIGHEST_PORT)]):
        return "every port is excluded"
    # A port that is included, and not excluded, is intercepted wherever it goes.
    ports_decide = not covers(_port_union(excluded), _port_union(policy.include_ports))
    included = _EVERYWHERE if ports_decide else policy.include_ranges
    if not (included.every or included.items):
        return "neither a range nor a port is included"
    if all(covers(address_union(policy.exclude_ranges, family), address_union(included, family)) for family in Family):
        return "every included range is excluded"
    return None


def _port_union(ports: Ports) -> Iterable[tuple[int, int]]:
    return merge_intervals((item.first, item.last) for item in ports)
