"""Each reason has rows that produce it and rows that almost do; a live edit is no leak."""

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest

from nodeagent.ledger import LEAKS, NUMBERS, Judgement, judge
from nodeagent.model import (
    FlowClass,
    FlowFlags,
    FlowKey,
    FlowKind,
    FlowOwner,
    Ipv6Mode,
    Mode,
    PodName,
    PodRecord,
    Policy,
    Ranges,
    Reason,
    Verdict,
)
from tests.cases.policies import interfaces, ports, ranges

APP, SIDECAR, NEW_CONTAINER = 71, 72, 99
EXCLUDING = Policy(exclude_ranges=ranges("203.0.113.0/24"))
INTERCEPTING = Policy()
NAME = PodName("shop", "cart-0", "3b1e")

ENFORCED = PodRecord(
    name=NAME,
    id=7,
    policy=INTERCEPTING,
    epochs={2: INTERCEPTING, 4: EXCLUDING, 6: EXCLUDING, 8: INTERCEPTING},
    containers={APP: "app", SIDECAR: "istio-proxy"},
    sidecars=frozenset({SIDECAR}),
    interfaces={1: "lo", 2: "eth0", 3: "net1"},
)
"""Epochs 2 and 8 intercept everything, 4 and 6 exclude the range that the flow goes to."""


def enforcing(**changes: Any) -> dict[str, Any]:  # noqa: ANN401  # fields of a policy
    """Return a record's changes: one policy, in force from the first epoch on."""
    policy = Policy(**changes)
    return {"policy": policy, "epochs": {2: policy}}


OBSERVED = {"enforced": False, "epochs": {}}
LATE = {"late": True}
OTHERS = {"enforced": False, "redirected_by_other": True, "epochs": {}}
_WATCHED = Policy(mode=Mode.OBSERVE)
THEN_ENFORCED = {"epochs": {2: _WATCHED, 4: INTERCEPTING}}
THEN_OBSERVED = {"enforced": False, "policy": _WATCHED, "epochs": {2: INTERCEPTING, 4: _WATCHED}}
BYPASSED, INTERCEPTED, TRANSLATED = FlowClass.BYPASSED, FlowClass.INTERCEPTED, FlowClass.TRANSLATED
UDP, ICMP = 17, 1


@dataclass(frozen=True)
class Row:
    says: str
    reason: str | None
    key: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


ROWS = (
    # as the policy says
    Row("intercepted as the policy says: included", "included", {"flow_class": INTERCEPTED}),
    Row(
        "intercepted though the policy excludes it: included, no leak",
        "included",
        {"flow_class": INTERCEPTED, "epoch": 4},
    ),
    Row("intercepted in an unknown epoch: included", "included", {"flow_class": INTERCEPTED, "epoch": 40}),
    Row("intercepted by the proxy's uid: included", "included", {"flow_class": INTERCEPTED, "owner": FlowOwner.UID}),
    Row(
        "intercepted DNS under DNS capture: dns_capture",
        "dns_capture",
        {"flow_class": INTERCEPTED, "port": 53, "protocol": UDP, "ifindex": 1},
        enforcing(dns_capture=True),
    ),
    Row(
        "the same without DNS capture: included",
        "included",
        {"flow_class": INTERCEPTED, "port": 53, "protocol": UDP, "ifindex": 1},
    ),
    Row(
        "intercepted DNS over TCP to a resolver that is excluded: dns_capture all the same",
        "dns_capture",
        {"flow_class": INTERCEPTED, "port": 53},
        enforcing(dns_capture=True, exclude_ranges=ranges("0.0.0.0/0")),
    ),
    Row("intercepted port 53 without DNS capture: included", "included", {"flow_class": INTERCEPTED, "port": 53}),
    Row(
        "intercepted port 54 under DNS capture: included",
        "included",
        {"flow_class": INTERCEPTED, "port": 54},
        enforcing(dns_capture=True),
    ),
    Row("to an excluded range: excluded_cidr", "excluded_cidr", {"epoch": 4}),
    Row("beside an excluded range: rules_missing", "rules_missing", {"epoch": 4, "destination": "203.0.114.1"}),
    Row("to an excluded port: excluded_port", "excluded_port", {}, enforcing(exclude_ports=ports(443))),
    Row("beside an excluded port: rules_missing", "rules_missing", {}, enforcing(exclude_ports=ports(444))),
    Row(
        "through an excluded interface: excluded_interface",
        "excluded_interface",
        {"ifindex": 3},
        enforcing(exclude_interfaces=interfaces("net1")),
    ),
    Row("beside an excluded interface", "rules_missing", {}, enforcing(exclude_interfaces=interfaces("net1"))),
    Row(
        "through an interface that nobody named yet: as if not excluded",
        "rules_missing",
        {"ifindex": 17},
        enforcing(exclude_interfaces=interfaces("net1")),
    ),
    Row("to a range that is not included: not_included", "not_included", {}, enforcing(include_ranges=Ranges())),
    Row(
        "to an included port of a range that is not",
        "rules_missing",
        {},
        enforcing(include_ranges=Ranges(), include_ports=ports(443)),
    ),
    Row("UDP: non_tcp", "non_tcp", {"protocol": UDP}),
    Row("ICMP, to no port: non_tcp", "non_tcp", {"protocol": ICMP, "port": 0}),
    Row("UDP to an excluded range: excluded_cidr", "excluded_cidr", {"protocol": UDP, "epoch": 4}),
    Row("direct DNS under DNS capture", "rules_missing", {"protocol": UDP, "port": 53}, enforcing(dns_capture=True)),
    Row("loopback: left out", None, {"ifindex": 1, "destination": "127.0.0.1"}),
    Row("the pod's own address through lo: left out", None, {"ifindex": 1, "destination": "10.244.1.5"}),
    Row("loopback, before lo was named: left out", None, {"ifindex": 1}, {"interfaces": {}}),
    # owners
    Row("the sidecar's own uid: exempt_owner", "exempt_owner", {"owner": FlowOwner.UID, "container": SIDECAR}),
    Row("the sidecar's own gid: exempt_owner", "exempt_owner", {"owner": FlowOwner.GID, "container": SIDECAR}),
    Row(
        "the proxy's uid where pods have no cgroups: exempt_owner",
        "exempt_owner",
        {"owner": FlowOwner.UID, "container": 0},
    ),
    Row(
        "the proxy's uid in a container unknown so far, perhaps a new sidecar: exempt_owner",
        "exempt_owner",
        {"owner": FlowOwner.UID, "container": NEW_CONTAINER},
    ),
    Row("the app with the proxy's uid", "impersonated_proxy", {"owner": FlowOwner.UID}),
    Row("the app with the proxy's gid", "impersonated_proxy", {"owner": FlowOwner.GID}),
    Row("the app with the proxy's uid, to an excluded range", "excluded_cidr", {"owner": FlowOwner.UID, "epoch": 4}),
    Row("the app with the proxy's uid, UDP", "non_tcp", {"owner": FlowOwner.UID, "protocol": UDP}),
    Row("the app with the proxy's uid, to itself", None, {"owner": FlowOwner.UID, "ifindex": 1}),
    Row("an impostor before the first rules", "impersonated_proxy", {"owner": FlowOwner.UID, "epoch": 0}),
    Row(
        "an impostor that was counted late",
        "impersonated_proxy",
        {"owner": FlowOwner.UID, "flags": FlowFlags.UNSEEN},
    ),
    Row("the app with a gid that nobody can tell", "rules_missing", {"owner": FlowOwner.GID_UNKNOWN}),
    # leaks
    Row("in an epoch that intercepts it: rules_missing", "rules_missing"),
    Row("to a third place, by another's DNAT", "rules_missing", {"flow_class": TRANSLATED}),
    Row("to a third place, excluded", "excluded_cidr", {"flow_class": TRANSLATED, "epoch": 4}),
    Row("before the first rules: before_rules", "before_rules", {"epoch": 0}),
    Row("on the way to the first rules: before_rules", "before_rules", {"epoch": 1}),
    Row("before the first rules, in a pod that still has none", "before_rules", {"epoch": 0}, {"epochs": {}}),
    Row("before the first rules, to what they exclude", "excluded_cidr", {"epoch": 0}, {"epochs": {2: EXCLUDING}}),
    Row("on the way to first rules that exclude it", "excluded_cidr", {"epoch": 1}, {"epochs": {2: EXCLUDING}}),
    Row(
        "before the first rules, whatever the policy is today",
        "before_rules",
        {"epoch": 0},
        {"policy": EXCLUDING},
    ),
    Row("in an epoch that nobody knows: preexisting", "preexisting", {"epoch": 40}),
    Row(
        "in an epoch that nobody knows, to what is excluded today",
        "excluded_cidr",
        {"epoch": 40},
        {"policy": EXCLUDING},
    ),
    Row("before anybody counted: preexisting", "preexisting", {"flags": FlowFlags.UNSEEN}),
    Row("before anybody counted and before the first rules", "preexisting", {"flags": FlowFlags.UNSEEN, "epoch": 0}),
    Row("begun unseen in a pod that started before its rules", "before_rules", {"flags": FlowFlags.UNSEEN}, LATE),
    Row("the same before the first rules", "before_rules", {"flags": FlowFlags.UNSEEN, "epoch": 0}, LATE),
    Row("the same after later rules: preexisting", "preexisting", {"flags": FlowFlags.UNSEEN, "epoch": 40}, LATE),
    Row("before anybody counted, excluded", "excluded_cidr", {"flags": FlowFlags.UNSEEN, "epoch": 4}),
    Row("intercepted, then direct: conntrack_lost", "conntrack_lost", {"flags": FlowFlags.ESCAPED}),
    Row("escaped before the first rules", "conntrack_lost", {"flags": FlowFlags.ESCAPED, "epoch": 0}),
    Row("escaped, and counted late", "conntrack_lost", {"flags": FlowFlags.ESCAPED | FlowFlags.UNSEEN}),
    Row("escaped to what is excluded", "excluded_cidr", {"flags": FlowFlags.ESCAPED, "epoch": 4}),
    Row(
        "IPv6 that the configuration leaves alone: ipv6_unmanaged",
        "ipv6_unmanaged",
        {"destination": "2001:db8::1"},
        enforcing(ipv6=Ipv6Mode.BYPASS),
    ),
    Row("IPv6 that it does not leave alone", "rules_missing", {"destination": "2001:db8::1"}),
    Row("IPv4 where IPv6 is left alone", "rules_missing", {}, enforcing(ipv6=Ipv6Mode.BYPASS)),
    # a live edit: epochs 3 and 7 lie between policies that differ, 5 between equal ones
    Row("direct during an edit that excludes it: no leak", "excluded_cidr", {"epoch": 3}),
    Row("direct during an edit that ends its exclusion: no leak", "excluded_cidr", {"epoch": 7}),
    Row("intercepted during an edit", "included", {"flow_class": INTERCEPTED, "epoch": 3}),
    Row(
        "direct during an edit, and either policy intercepts it: rules_missing",
        "rules_missing",
        {"epoch": 3, "destination": "192.0.2.1"},
    ),
    Row(
        "direct during an edit to a policy that nobody knows: preexisting",
        "preexisting",
        {"epoch": 9, "destination": "192.0.2.1"},
    ),
    # observe mode, and other tools' redirects
    Row("in observe mode: observed", "observed", {"epoch": 0}, OBSERVED),
    Row(
        "in observe mode, with the proxy's uid: observed, for nothing is in force",
        "observed",
        {"owner": FlowOwner.UID},
        OBSERVED,
    ),
    Row("in observe mode, counted late", "observed", {"flags": FlowFlags.UNSEEN}, OBSERVED),
    Row(
        "in observe mode, excluded by the pod's own annotations", "excluded_cidr", {}, OBSERVED | {"policy": EXCLUDING}
    ),
    Row("in observe mode, intercepted all the same", "included", {"flow_class": INTERCEPTED}, OBSERVED),
    Row("where another tool redirects: rules_missing", "rules_missing", {"epoch": 0}, OTHERS),
    Row("where another tool redirects, counted late", "preexisting", {"epoch": 0, "flags": FlowFlags.UNSEEN}, OTHERS),
    Row("where another tool redirects, escaped", "conntrack_lost", {"epoch": 0, "flags": FlowFlags.ESCAPED}, OTHERS),
    Row(
        "where another tool redirects, an impostor", "impersonated_proxy", {"epoch": 0, "owner": FlowOwner.UID}, OTHERS
    ),
    Row("where another tool redirects, excluded", "excluded_cidr", {"epoch": 0}, OTHERS | {"policy": EXCLUDING}),
    # from observing to enforcing, and back: what was in force when the flow began
    Row("begun while we observed, in a pod that is enforced today: observed", "observed", {}, THEN_ENFORCED),
    Row(
        "begun while we observed, with the proxy's uid, enforced today",
        "observed",
        {"owner": FlowOwner.UID},
        THEN_ENFORCED,
    ),
    Row("begun before we observed, enforced today: observed", "observed", {"epoch": 0}, THEN_ENFORCED),
    Row("begun on the way from observing to enforcing: observed", "observed", {"epoch": 3}, THEN_ENFORCED),
    Row("begun once we enforced: rules_missing", "rules_missing", {"epoch": 4}, THEN_ENFORCED),
    Row(
        "begun while we observed what another tool redirects to this day",
        "rules_missing",
        {},
        {**THEN_ENFORCED, "enforced": False, "redirected_by_other": True},
    ),
    Row("begun while we enforced, in a pod that is observed today: rules_missing", "rules_missing", {}, THEN_OBSERVED),
    Row("begun before we enforced, observed today: before_rules", "before_rules", {"epoch": 0}, THEN_OBSERVED),
    Row("begun on the way from enforcing to observing: observed", "observed", {"epoch": 3}, THEN_OBSERVED),
    Row("begun once we observed: observed", "observed", {"epoch": 4}, THEN_OBSERVED),
    Row("intercepted until we let it go: observed", "observed", {"flags": FlowFlags.ESCAPED}, THEN_OBSERVED),
    Row(
        "intercepted, then direct, while we enforce again: conntrack_lost",
        "conntrack_lost",
        {"epoch": 4, "flags": FlowFlags.ESCAPED},
        THEN_ENFORCED,
    ),
    Row(
        "begun in an epoch that nobody knows, in a pod that is observed today",
        "observed",
        {"epoch": 40},
        THEN_OBSERVED,
    ),
    # slots that are no flow
    Row("the sidecar's: proxy", "proxy", {"flow_class": FlowClass.PROXY}),
    Row("the sidecar's overflow: proxy", "proxy", {"flow_class": FlowClass.PROXY, "kind": FlowKind.OVERFLOW}),
    Row("an overflow slot: overflow", "overflow", {"kind": FlowKind.OVERFLOW}),
    Row("intercepted overflow: overflow", "overflow", {"kind": FlowKind.OVERFLOW, "flow_class": INTERCEPTED}),
    Row(
        "a folded slot: the reason that it holds", "non_tcp", {"kind": FlowKind.FOLDED, "port": NUMBERS[Reason.NON_TCP]}
    ),
    Row("a folded slot of a newer agent: unknown", "unknown", {"kind": FlowKind.FOLDED, "port": 60000}),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.says)
def test_a_flow_is_judged(row: Row) -> None:
    judged = judge(make_key(**row.key), make_record(**row.record))
    assert (judged and judged.reason) == row.reason
    if judged:
        assert judged.verdict is VERDICT_OF[row.key.get("flow_class", BYPASSED)]


VERDICT_OF = {
    BYPASSED: Verdict.BYPASSED,
    TRANSLATED: Verdict.BYPASSED,
    INTERCEPTED: Verdict.INTERCEPTED,
    FlowClass.PROXY: Verdict.PROXY,
}


def make_key(**changes: Any) -> FlowKey:  # noqa: ANN401  # fields of a key
    """Return the key of the app's HTTPS to 203.0.113.10 in epoch 2, sent directly, but for *changes*."""
    fields = {
        "pod": 7,
        "container": APP,
        "destination": "203.0.113.10",
        "port": 443,
        "protocol": 6,
        "ifindex": 2,
        "epoch": 2,
        "flow_class": BYPASSED,
    } | changes
    return FlowKey(**fields | {"destination": ip_address(fields["destination"])})  # type: ignore[arg-type]  # as above


def make_record(**changes: Any) -> PodRecord:  # noqa: ANN401  # fields of a record
    """Return ENFORCED but for *changes*."""
    return PodRecord(**{name: getattr(ENFORCED, name) for name in ENFORCED.__dataclass_fields__} | changes)


def test_every_reason_has_a_row() -> None:
    assert {row.reason for row in ROWS} == {None, *Reason} - {Reason.LOOPBACK}


def apart(a: Row, b: Row) -> int:
    """Return in how many fields of key and record two rows differ; a policy and its epoch are one."""
    one, other = {**a.key, **a.record}, {**b.key, **b.record}
    for fields in (one, other):
        if fields.get("epochs") == {2: fields.get("policy")}:
            del fields["epochs"]
    return sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())


@pytest.mark.parametrize("reason", sorted({row.reason for row in ROWS if row.reason}))
def test_every_reason_has_a_row_that_almost_gets_it(reason: str) -> None:
    mine = [row for row in ROWS if row.reason == reason]
    assert [row.says for row in ROWS if row.reason != reason and any(apart(row, one) == 1 for one in mine)]


def test_leaks_are_what_the_table_of_reasons_calls_so() -> None:
    assert sorted(LEAKS) == [
        "before_rules",
        "conntrack_lost",
        "impersonated_proxy",
        "ipv6_unmanaged",
        "preexisting",
        "rules_missing",
    ]


def test_a_judgement_reads_as_words() -> None:
    assert judge(make_key(), ENFORCED) == Judgement(Verdict.BYPASSED, Reason.RULES_MISSING)


RELEASED = [
    "included",
    "dns_capture",
    "excluded_cidr",
    "excluded_port",
    "excluded_interface",
    "not_included",
    "non_tcp",
    "exempt_owner",
    "ipv6_unmanaged",
    "observed",
    "before_rules",
    "preexisting",
    "rules_missing",
    "conntrack_lost",
    "impersonated_proxy",
    "proxy",
    "overflow",
    "unknown",
]
"""Reasons by number, from 1.  Append what is new; any other change here loses counts on every node."""


def test_reasons_keep_the_numbers_that_they_were_released_with() -> None:
    assert tuple(NUMBERS.items()) == tuple((Reason(name), number) for number, name in enumerate(RELEASED, 1))


def test_every_reason_but_loopback_has_a_number() -> None:
    assert set(NUMBERS) == set(Reason) - {Reason.LOOPBACK}
