"""What a node's egress comes to, small enough to be seen at once: by reason, and who talks to whom.  Pure.

Promises: nothing is left out of the sums.  What the picture has no room for is in it under the name None, and
whoever leaks is given room first.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from nodeagent.ledger import Flow, Kind, kind_of

MOST_PODS: Final = 12
MOST_DESTINATIONS: Final = 14
"""Names on either side of the picture; more would be lines that nobody can tell apart."""
_MOST_TOP: Final = 4

Json = dict[str, Any]
_PodId = tuple[str, str]
_Name = TypeVar("_Name", bound=Hashable)


class Link(NamedTuple):
    """What one pod sent to one destination, all of one kind."""

    namespace: str
    pod: str
    destination: str
    kind: Kind


@dataclass(slots=True)
class Amount:
    """How much it was."""

    connections: int = 0
    bytes: int = 0
    received_bytes: int = 0

    def add(self, more: "Flow | Amount") -> None:
        """Add what *more* counts."""
        self.connections += more.connections
        self.bytes += more.bytes
        self.received_bytes += more.received_bytes

    def show(self) -> Json:
        """Return it as JSON."""
        return {"connections": self.connections, "bytes": self.bytes, "received_bytes": self.received_bytes}


@dataclass(slots=True)
class _Why:
    """What happened for one reason, to whom and by whom."""

    kind: Kind
    amount: Amount = field(default_factory=Amount)
    tcp: int = 0
    """Connections that are TCP: what a proxy's own counters can be held against."""
    pods: Counter[_PodId] = field(default_factory=Counter)
    destinations: Counter[str] = field(default_factory=Counter)


def overview(flows: Iterable[Flow]) -> Json:
    """Return ``{"egress": […], "links": […]}``: sums by verdict and reason, and the picture's bands.

    The sidecars' own legs are in the first and not in the second.
    """
    whys: dict[tuple[str, str], _Why] = {}
    links: dict[Link, Amount] = {}
    for flow in flows:
        why = whys.get((flow.verdict, flow.reason))
        if why is None:
            why = whys[flow.verdict, flow.reason] = _Why(kind_of(flow.verdict, flow.reason))
        why.amount.add(flow)
        why.tcp += flow.connections if flow.protocol == "tcp" else 0
        why.pods[flow.namespace, flow.pod] += flow.bytes
        why.destinations[flow.destination] += flow.bytes
        if why.kind is not Kind.PROXY:
            link = Link(flow.namespace, flow.pod, flow.destination, why.kind)
            amount = links.get(link)
            if amount is None:
                amount = links[link] = Amount()
            amount.add(flow)
    egress = sorted(whys.items(), key=lambda item: -item[1].amount.bytes)
    return {"egress": [_show_why(*key, why) for key, why in egress], "links": fold(links)}


def _show_why(verdict: str, reason: str, why: _Why) -> Json:
    return {
        "verdict": verdict,
        "reason": reason,
        "kind": why.kind.value,
        **why.amount.show(),
        "tcp_connections": why.tcp,
        "pods": len(why.pods),
        "destinations": len(why.destinations),
        "top_pods": [{"namespace": n, "pod": p, "bytes": size} for (n, p), size in why.pods.most_common(_MOST_TOP)],
        "top_destinations": [{"name": n, "bytes": size} for n, size in why.destinations.most_common(_MOST_TOP)],
    }


def fold(links: Mapping[Link, Amount]) -> list[Json]:
    """Return the picture's bands, the widest first; pods and destinations without room have the name None."""
    pods = _chosen(((link.namespace, link.pod), link.kind, amount) for link, amount in links.items())
    destinations = _chosen((link.destination, link.kind, amount) for link, amount in links.items())
    shown_pods, shown_destinations = set(pods[:MOST_PODS]), set(destinations[:MOST_DESTINATIONS])
    bands: dict[tuple[_PodId | None, str | None, Kind], Amount] = {}
    for link, amount in links.items():
        pod = (link.namespace, link.pod) if (link.namespace, link.pod) in shown_pods else None
        destination = link.destination if link.destination in shown_destinations else None
        bands.setdefault((pod, destination, link.kind), Amount()).add(amount)
    return [
        {
            "namespace": pod[0] if pod else None,
            "pod": pod[1] if pod else None,
            "destination": destination,
            "kind": kind.value,
            **amount.show(),
        }
        for (pod, destination, kind), amount in sorted(bands.items(), key=lambda band: -band[1].bytes)
    ]


def _chosen(named: Iterable[tuple[_Name, Kind, Amount]]) -> Sequence[_Name]:
    """Return all names, those that leak first, then by what they sent."""
    leaking: set[_Name] = set()
    sizes: Counter[_Name] = Counter()
    for name, kind, amount in named:
        sizes[name] += amount.bytes
        if kind is Kind.LEAK:
            leaking.add(name)
    return sorted(sizes, key=lambda name: (name not in leaking, -sizes[name]))
