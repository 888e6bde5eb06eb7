"""Frozen data that every part shares: policies, connections, decisions, rule sets, plans.

Nothing here computes more than a look-up, and nothing here touches the world.  All addresses
are :mod:`ipaddress` objects; ports are 0 to 65535; interface names are at most 15 bytes.
"""

from nodeagent.model.flow import (
    NETNS_POD,
    CountedPod,
    Counters,
    FlowClass,
    FlowFlags,
    FlowKey,
    FlowKind,
    FlowOwner,
    PodName,
    PodRecord,
    Slot,
    SlotState,
)
from nodeagent.model.kernel import BackendName, Change, ChangeKind, KernelRule, KernelState, Plan, Program, Reading
from nodeagent.model.network import DNS_PORT, LOOPBACK, Address, Family, Network, PortRange, Protocol
from nodeagent.model.pod import Container, PodKey, PodManifest, Snapshot
from nodeagent.model.policy import Connection, Decision, Ipv6Mode, Mode, Policy, Ports, Ranges, Reason, Sourced, Verdict
from nodeagent.model.rules import Action, Bypass, Hook, Match, Nothing, RangeSet, Redirect, Rule, RuleSet, Zone

__all__ = [
    "DNS_PORT",
    "LOOPBACK",
    "NETNS_POD",
    "Action",
    "Address",
    "BackendName",
    "Bypass",
    "Change",
    "ChangeKind",
    "Connection",
    "Container",
    "CountedPod",
    "Counters",
    "Decision",
    "Family",
    "FlowClass",
    "FlowFlags",
    "FlowKey",
    "FlowKind",
    "FlowOwner",
    "Hook",
    "Ipv6Mode",
    "KernelRule",
    "KernelState",
    "Match",
    "Mode",
    "Network",
    "Nothing",
    "Plan",
    "PodKey",
    "PodManifest",
    "PodName",
    "PodRecord",
    "Policy",
    "PortRange",
    "Ports",
    "Program",
    "Protocol",
    "RangeSet",
    "Ranges",
    "Reading",
    "Reason",
    "Redirect",
    "Rule",
    "RuleSet",
    "Slot",
    "SlotState",
    "Snapshot",
    "Sourced",
    "Verdict",
    "Zone",
]
