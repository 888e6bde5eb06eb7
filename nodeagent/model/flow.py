"""What the kernel counted, and who a pod is to the kernel.

The kernel's own layout is ``bpf/flow.h``; numbers here are its numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import NamedTuple

from nodeagent.model.network import Address
from nodeagent.model.policy import Policy

NETNS_POD = 1 << 63
"""Marks a pod's ID that is a netns cookie: on nodes where pods have no cgroup v2 directory."""


class FlowClass(IntEnum):
    """Where a packet went, compared with where its socket wanted it to go."""

    INTERCEPTED = 0
    BYPASSED = 1
    PROXY = 2
    TRANSLATED = 3


class FlowKind(IntEnum):
    """What a slot holds: one flow, what found no slot of its own, or many former slots in one."""

    FLOW = 0
    OVERFLOW = 1
    FOLDED = 2


class FlowOwner(IntFlag):
    """What is known of a socket's owner, held against the proxy's uids and gids."""

    NONE = 0
    UID = 1
    GID = 2
    GID_UNKNOWN = 4


class FlowFlags(IntFlag):
    """``UNSEEN``: nobody counted yet when it began; ``ESCAPED``: intercepted once, direct now."""

    NONE = 0
    UNSEEN = 1
    ESCAPED = 2


class SlotState(IntEnum):
    """``EVICTED``: no packet finds it any more, and its counters are still to be folded."""

    FREE = 0
    LIVE = 1
    EVICTED = 2


@dataclass(frozen=True, slots=True)
class FlowKey:
    """What all packets of a slot have in common; see ``struct flow_key``.

    ``destination`` is the address that was dialled (the unspecified one in overflow and folded
    slots), ``port`` 0 where the protocol has none; ``protocol`` is an IP protocol number.
    ``epoch`` is that of the connection's first packet: even ones are settled, an odd one lies
    between its two neighbours, either of whose policies may have decided.
    """

    pod: int
    container: int
    destination: Address
    port: int
    protocol: int
    ifindex: int
    epoch: int
    flow_class: FlowClass
    owner: FlowOwner = FlowOwner.NONE
    flags: FlowFlags = FlowFlags.NONE
    kind: FlowKind = FlowKind.FLOW


class Counters(NamedTuple):
    """Monotone counts of one slot, flow or series; bytes are IP bytes, but for ``payload``."""

    connections: int = 0
    packets: int = 0
    segments: int = 0
    bytes: int = 0
    payload: int = 0
    received_packets: int = 0
    received_bytes: int = 0


class Slot(NamedTuple):
    """One slot as it was read.  ``generation`` grows when the slot changes hands."""

    position: int
    generation: int
    state: SlotState
    key: FlowKey
    counters: Counters


@dataclass(frozen=True, slots=True)
class CountedPod:
    """What the kernel is told about a pod that it shall count.

    ``id`` is the inode of the pod's cgroup v2 directory, or ``NETNS_POD`` | netns cookie.
    ``number`` (1 to 1023) is unique on the node while the pod is counted, and names its reserved
    slots.  ``sidecars`` are cgroup ids of the sidecar's containers, past ones included.
    """

    id: int
    number: int
    epoch: int
    proxy_port: int
    dns_port: int
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    sidecars: frozenset[int] = frozenset()
    tproxy_mark: int = 0


@dataclass(frozen=True, slots=True)
class PodName:
    """A pod as people and metrics know it."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class PodRecord:
    """What the ledger needs to judge a pod's flows.

    ``epochs`` maps settled (even) epochs to the policy that was in force; 0, before the first
    rules, is in no map.  ``redirected_by_other`` says that another tool's redirect was seen in the pod.
    ``containers`` maps cgroup ids to names, past ones included; ``interfaces`` maps ifindex to name.
    ``netns`` is where the pod is to be found again; the ledger itself does not need it.  ``late`` says that a
    container ran before the first rules stood: what nobody saw begin, began then.
    """

    name: PodName
    id: int
    policy: Policy
    enforced: bool = True
    redirected_by_other: bool = False
    epochs: Mapping[int, Policy] = field(default_factory=dict)
    containers: Mapping[int, str] = field(default_factory=dict)
    sidecars: frozenset[int] = frozenset()
    interfaces: Mapping[int, str] = field(default_factory=dict)
    netns: str = ""
    late: bool = False
