"""A pod that is counted, and two opinions on what it sent: our slots, and an nft set that counts in POSTROUTING."""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, Self, TypeAlias, TypeVar

from nodeagent.bpf.counting import Counting
from nodeagent.bpf.slots import SlotReader
from nodeagent.model.flow import (
    CountedPod,
    Counters,
    FlowClass,
    FlowFlags,
    FlowKey,
    FlowKind,
    FlowOwner,
    SlotState,
)
from tests.lab import Netns, PodCgroups, Topology

PROXY_PORT, DNS_PORT = 15001, 15053
PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58}
PATIENCE = 10.0
"""Seconds for what is under way to arrive; nothing waits so long where things work."""

T = TypeVar("T")

Wire: TypeAlias = tuple[int, str, int]
"""Protocol, address and port that packets really went to."""

_ORACLE = """\
table inet oracle {
    set four { type inet_proto . ipv4_addr . inet_service; flags dynamic; size 65535; }
    set six { type inet_proto . ipv6_addr . inet_service; flags dynamic; size 65535; }
    set four_bare { type inet_proto . ipv4_addr; flags dynamic; size 65535; }
    set six_bare { type inet_proto . ipv6_addr; flags dynamic; size 65535; }
    chain out {
        type filter hook postrouting priority 400
        meta nfproto ipv4 meta l4proto { tcp, udp } update @four { ip protocol . ip daddr . th dport counter } return
        meta nfproto ipv6 meta l4proto { tcp, udp } update @six { ip6 nexthdr . ip6 daddr . th dport counter } return
        meta nfproto ipv4 update @four_bare { ip protocol . ip daddr counter } return
        meta nfproto ipv6 update @six_bare { ip6 nexthdr . ip6 daddr counter }
    }
}
"""


@dataclass(frozen=True)
class Row:
    """One flow that is expected, or was found."""

    flow_class: FlowClass
    destination: str
    port: int
    protocol: str = "tcp"
    connections: int = 1
    container: str = "app"
    owner: FlowOwner = FlowOwner.NONE
    flags: FlowFlags = FlowFlags.NONE
    epoch: int = 2
    wire: Wire | None = field(default=None, compare=False)
    """Where its packets really went; None: as the class says."""

    @property
    def on_the_wire(self) -> Wire:
        """Where the oracle finds its packets."""
        if self.wire:
            return self.wire
        number = PROTOCOLS[self.protocol]
        if self.flow_class is not FlowClass.INTERCEPTED:
            return number, self.destination, self.port
        local = "::1" if ":" in self.destination else "127.0.0.1"
        return number, local, DNS_PORT if self.port == 53 else PROXY_PORT


def intercepted(destination: str, port: int, protocol: str = "tcp", **more: Any) -> Row:  # noqa: ANN401  # Row's own
    return Row(FlowClass.INTERCEPTED, destination, port, protocol, **more)


def bypassed(destination: str, port: int, protocol: str = "tcp", **more: Any) -> Row:  # noqa: ANN401
    return Row(FlowClass.BYPASSED, destination, port, protocol, **more)


def proxied(destination: str, port: int, protocol: str = "tcp", **more: Any) -> Row:  # noqa: ANN401
    return Row(FlowClass.PROXY, destination, port, protocol, container="sidecar", **{"owner": BOTH, **more})


BOTH = FlowOwner.UID | FlowOwner.GID


class CountedTopology:
    """A topology in cgroups of its own, enrolled, with an oracle."""

    def __init__(self, topology: Topology, cgroups: PodCgroups, counting: Counting, pod: CountedPod) -> None:
        self.topology, self.cgroups, self.counting, self.pod = topology, cgroups, counting, pod
        self.reader = SlotReader(counting.slots_fd)
        watch_wire(topology.pod)
        counting.enrol(pod)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()
        self.counting.forget(self.pod.id)
        release_all(self.counting, self.pod.id)

    def totals(self) -> dict[FlowKey, Counters]:
        """Return what each flow of the pod has counted, evicted parts included."""
        return totals(self.reader, self.pod.id)

    def row(self, key: FlowKey, counters: Counters) -> Row:
        """Return a flow in the words of the tests."""
        containers = {self.cgroups.app.id: "app", self.cgroups.sidecar.id: "sidecar"}
        names = {number: name for name, number in PROTOCOLS.items()}
        return Row(
            key.flow_class,
            str(key.destination),
            key.port,
            names.get(key.protocol, str(key.protocol)),
            counters.connections,
            containers.get(key.container, str(key.container)),
            key.owner,
            key.flags,
            key.epoch,
        )

    @contextmanager
    def expect(self, *rows: Row, compare_wire: bool = True) -> Iterator[None]:
        """Hold what happens inside against *rows*: exactly these flows, and the oracle's packets and bytes."""
        before, seen_before = self.totals(), oracle(self.topology.pod)
        yield
        wires = {row.on_the_wire for row in rows} if compare_wire else set()
        deadline, calm = time.monotonic() + PATIENCE, None
        while True:
            found = {key: minus(now, before.get(key, Counters())) for key, now in self.totals().items()}
            found = {key: counters for key, counters in found.items() if any(counters)}
            seen = oracle(self.topology.pod)
            heard = {wire: _difference(seen.get(wire), seen_before.get(wire)) for wire in wires}
            told = self._by_wire(found, rows)
            rows_found = {self.row(key, counters) for key, counters in found.items()}
            agreed = rows_found == set(rows) and all(told[wire] == heard[wire] for wire in wires)
            if (agreed and calm == found) or time.monotonic() > deadline:
                break
            calm = found  # twice the same: what is under way has arrived
            time.sleep(0.02)
        if rows_found != set(rows):
            raise AssertionError(_told_apart("not expected", rows_found - set(rows), "missing", set(rows) - rows_found))
        if wrong := {wire: (told[wire], heard[wire]) for wire in wires if told[wire] != heard[wire]}:
            raise AssertionError(f"(packets, bytes) that we counted, and that nft counted: {wrong}")

    def _by_wire(self, found: Mapping[FlowKey, Counters], rows: Sequence[Row]) -> Mapping[Wire, tuple[int, int]]:
        wire_of = {_place(row): row.on_the_wire for row in rows}
        told: defaultdict[Wire, tuple[int, int]] = defaultdict(lambda: (0, 0))
        for key, counters in found.items():
            wire = wire_of.get(_place(self.row(key, counters)))
            if wire:
                packets, size = told[wire]
                told[wire] = packets + counters.packets, size + counters.bytes
        return told


def settled(read: Callable[[], T]) -> T:
    """Return what *read* returns once it says the same twice in a row: what was under way has arrived."""
    deadline, before = time.monotonic() + PATIENCE, read()
    while time.monotonic() < deadline:
        time.sleep(0.2)
        now = read()
        if now == before:
            break
        before = now
    return before


def _told_apart(what: str, more: set[Row], other: str, less: set[Row]) -> str:
    return "\n".join([f"{what}:", *map(str, more), f"{other}:", *map(str, less)])


def _place(row: Row) -> Row:
    return replace(row, connections=0)


def _difference(now: tuple[int, int] | None, before: tuple[int, int] | None) -> tuple[int, int]:
    (packets, size), (packets_before, size_before) = now or (0, 0), before or (0, 0)
    return packets - packets_before, size - size_before


def minus(now: Counters, before: Counters) -> Counters:
    """Return the difference, counter by counter."""
    return Counters(*(a - b for a, b in zip(now, before, strict=True)))


def plus(*counters: Counters) -> Counters:
    """Return the sum, counter by counter."""
    return Counters(*map(sum, zip(*counters, strict=True))) if counters else Counters()


def totals(reader: SlotReader, pod: int) -> dict[FlowKey, Counters]:
    """Return the flows of *pod*, reserved slots left out where they are empty."""
    found: dict[FlowKey, Counters] = {}
    for slot in reader.read():
        if slot.key.pod == pod and (any(slot.counters) or slot.key.kind is FlowKind.FLOW):
            found[slot.key] = plus(found.get(slot.key, Counters()), slot.counters)
    return found


def release_all(counting: Counting, pod: int) -> None:
    """Free every slot that is evicted, as whoever keeps the ledger does."""
    with SlotReader(counting.slots_fd) as reader:
        evicted = [s for s in reader.read() if s.key.pod == pod and s.state is SlotState.EVICTED]
    assert counting.release([(s.position, s.generation, None) for s in evicted]) == []


def watch_wire(netns: Netns) -> None:
    """Let an nft set count what leaves *netns*, for :func:`oracle`."""
    netns.nft(_ORACLE)


def oracle(netns: Netns) -> dict[Wire, tuple[int, int]]:
    """Return packets and bytes by where they really went, as nft counted them."""
    seen: Counter[Wire] = Counter()
    sizes: Counter[Wire] = Counter()
    listing = json.loads(netns.run(["nft", "-jn", "list", "table", "inet", "oracle"]))
    for item in listing["nftables"]:
        for element in item.get("set", {}).get("elem", []):
            value, counter = element["elem"]["val"]["concat"], element["elem"]["counter"]
            protocol, address = value[0], str(ip_address(value[1]))
            wire = _number(protocol), address, value[2] if len(value) > 2 else 0
            seen[wire] += counter["packets"]
            sizes[wire] += counter["bytes"]
    return {wire: (seen[wire], sizes[wire]) for wire in seen}


def _number(protocol: int | str) -> int:
    return protocol if isinstance(protocol, int) else PROTOCOLS.get(protocol.replace("ipv6-icmp", "icmpv6"), -1)
