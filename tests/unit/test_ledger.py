"""What the ledger shows, case by case; that it holds under anything is test_ledger_properties' business."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from nodeagent.ledger import RETENTION, Account, Flow, Leaked, Ledger, Limits, Naming
from nodeagent.ledger.choose import choose
from nodeagent.model import FlowClass, FlowKey, PodName, PodRecord, Policy, Reason, Verdict
from tests.cases.policies import ranges
from tests.cases.slots import CountingKernel, in_epoch

APP = 71
RECORD = PodRecord(
    name=PodName("shop", "cart-0", "3b1e"),
    id=7,
    policy=Policy(),
    epochs={2: Policy(), 4: Policy(exclude_ranges=ranges("203.0.113.0/24"))},
    containers={APP: "app"},
    interfaces={2: "eth0"},
)
HTTPS = FlowKey(7, APP, ip_address("203.0.113.10"), 443, 6, 2, 2, FlowClass.INTERCEPTED)
NOW = 5000.0


def test_a_flow_has_the_words_of_the_contract() -> None:
    kernel, ledger = (
        CountingKernel(capacity=10),
        Ledger(naming=Naming({"payments-db": (ip_network("203.0.113.0/28"),)})),
    )
    kernel.send(HTTPS, 3)
    ledger.observe(kernel.read(), {7: RECORD}, NOW)
    assert [flow._asdict() for flow in ledger.flows()] == [
        {
            "namespace": "shop",
            "pod": "cart-0",
            "container": "app",
            "destination": "payments-db",
            "address": "203.0.113.10",
            "port": 443,
            "protocol": "tcp",
            "verdict": "intercepted",
            "reason": "included",
            "connections": 1,
            "packets": 3,
            "bytes": 300,
            "payload": 180,
            "received_bytes": 120,
        }
    ]


def test_flows_that_were_quiet_are_left_out_and_the_others_are_whole() -> None:
    other = replace(HTTPS, port=444)
    kernel, ledger = observe(HTTPS, other)
    kernel.send(other, 2)
    ledger.observe(kernel.read(), {7: RECORD}, NOW + 60)
    assert [(flow.port, flow.packets) for flow in ledger.flows(NOW + 60)] == [(444, 3)]
    assert {flow.port for flow in ledger.flows(NOW)} == {443, 444}
    assert ledger.flows(NOW + 61) == []


def test_what_an_earlier_agent_counted_is_taken_for_active_when_the_next_one_looks() -> None:
    kernel, ledger = observe(HTTPS)
    after = Ledger(memory=ledger.memory())
    after.observe(kernel.read(), {7: RECORD}, NOW + 1000)
    assert [flow.port for flow in after.flows(NOW + 1000)] == [443]
    assert after.flows(NOW + 1001) == []


def observe(*sent: FlowKey, record: PodRecord = RECORD, capacity: int = 10) -> tuple[CountingKernel, Ledger]:
    """Return a kernel that counted one packet of each, and a ledger that has seen it."""
    kernel, ledger = CountingKernel(capacity), Ledger()
    for key in sent:
        kernel.send(key, 1)
    ledger.observe(kernel.read(), {7: record}, NOW)
    return kernel, ledger


def summary(flow: Flow) -> tuple[object, ...]:
    return flow.container, flow.address, flow.port, flow.protocol, flow.reason, flow.packets


FLOWS = {
    "slots that differ only in their epoch are one flow": (
        (HTTPS, in_epoch(HTTPS, 40)),
        [("app", "203.0.113.10", 443, "tcp", "included", 2)],
    ),
    "a container that nobody knows has no name": (
        (replace(HTTPS, container=99),),
        [(None, "203.0.113.10", 443, "tcp", "included", 1)],
    ),
    "a protocol without a name is other": (
        (replace(HTTPS, flow_class=FlowClass.BYPASSED, protocol=254, port=0),),
        [("app", "203.0.113.10", 0, "other", "non_tcp", 1)],
    ),
    "loopback is no flow": ((replace(HTTPS, flow_class=FlowClass.BYPASSED, ifindex=1),), []),
}


@pytest.mark.parametrize(("sent", "expected"), FLOWS.values(), ids=FLOWS)
def test_flows_are_merged_and_named(sent: tuple[FlowKey, ...], expected: list[tuple[object, ...]]) -> None:
    _, ledger = observe(*sent)
    assert [summary(flow) for flow in ledger.flows()] == expected


def to(number: int, **changes: object) -> FlowKey:
    """Return a flow to another address."""
    return replace(HTTPS, destination=ip_address(f"198.51.100.{number}"), **changes)  # type: ignore[arg-type]  # fields


def test_a_full_map_counts_into_overflow_and_the_books_close() -> None:
    kernel, ledger = observe(*(to(n) for n in range(5)), capacity=3)
    assert sorted(summary(flow) for flow in ledger.flows() if flow.address is None) == [
        (None, None, None, "other", "overflow", 2)
    ]
    assert sum(total.counters.packets for total in ledger.totals()) == kernel.sent[7] == 5


def shown(ledger: Ledger) -> dict[str, int]:
    """Return bytes by destination."""
    return {series.destination: series.counters.bytes for series in ledger.series()}


def test_what_other_has_shown_of_a_destination_stays_there_when_it_is_promoted() -> None:
    kernel, ledger = CountingKernel(capacity=10), Ledger(Limits(top_destinations=1))
    for key, count in ((to(1), 10), (to(2), 5)):
        kernel.send(key, count)
    ledger.observe(kernel.read(), {7: RECORD}, NOW)
    assert shown(ledger) == {"198.51.100.1": 1000, "other": 500}
    kernel.send(to(2), 20)
    ledger.observe(kernel.read(), {7: RECORD}, NOW + 30)
    assert shown(ledger) == {"198.51.100.1": 1000, "198.51.100.2": 2000, "other": 500}
    kernel.send(to(1), 1)
    ledger.observe(kernel.read(), {7: RECORD}, NOW + 31)
    assert shown(ledger) == {"198.51.100.1": 1000, "198.51.100.2": 2000, "other": 600}


CHOICES: dict[str, tuple[dict[str, int], set[str], int, set[str]]] = {
    "free places go to the largest": ({"a": 1, "b": 2, "c": 3}, set(), 9, {"b", "c"}),
    "a little more is not enough": ({"a": 10, "b": 12, "c": 20}, {"a", "b"}, 9, {"a", "b"}),
    "more than double takes the place of the smallest": ({"a": 10, "b": 12, "c": 21}, {"a", "b"}, 9, {"b", "c"}),
    "two may take two places": ({"a": 1, "b": 2, "c": 30, "d": 40}, {"a", "b"}, 9, {"c", "d"}),
    "unless too many lost theirs": ({"a": 1, "b": 2, "c": 30, "d": 40}, {"a", "b"}, 1, {"b", "d"}),
    "a smaller limit freezes the smallest": ({"a": 1, "b": 2, "c": 3}, {"a", "b", "c"}, 0, {"b", "c"}),
    "one without any traffic left gives way": ({"c": 1}, {"a", "b"}, 9, {"a", "c"}),
}


@pytest.mark.parametrize(("scores", "active", "swaps", "expected"), CHOICES.values(), ids=CHOICES)
def test_destinations_are_chosen(scores: dict[str, int], active: set[str], swaps: int, expected: set[str]) -> None:
    assert choose(scores, active, top=2, swaps=swaps) == expected


def test_the_nodes_limit_holds_whatever_pods_do() -> None:
    kernel, ledger = CountingKernel(capacity=900), Ledger(Limits(series_limit=100))
    records = {pod: replace(RECORD, id=pod, name=PodName("shop", f"cart-{pod}", str(pod))) for pod in range(1, 11)}
    for pod in records:
        for n in range(80):
            kernel.send(to(n, pod=pod, protocol=n % 20, flow_class=FlowClass(n % 4)), 1)
    ledger.observe(kernel.read(), records, NOW)
    assert len(ledger.series()) == 50
    assert sum(total.counters.packets for total in ledger.totals()) == 800


def test_a_pod_that_ended_goes_ten_minutes_later_and_its_slots_with_it() -> None:
    kernel, ledger = observe(to(1), to(2))
    assert ledger.observe(kernel.read(), {}, NOW + 1).ended == {7: NOW + 1}
    ledger.observe(kernel.read(), {}, NOW + RETENTION)
    assert len(ledger.flows()) == len(ledger.series()) - 1 == 2
    changes = ledger.observe(kernel.read(), {}, NOW + 1 + RETENTION)
    assert (changes.forgotten, changes.vacated) == (frozenset({7}), frozenset())
    assert not ledger.flows()
    assert not ledger.series()
    kernel.evict(ledger.victims(kernel.free, 10, NOW + 602))
    ledger.observe(kernel.read(), {}, NOW + 602)
    kernel.release(ledger.releases(NOW + 603))
    assert kernel.read() == []
    assert ledger.observe(kernel.read(), {}, NOW + 603).vacated == {7}


def test_a_pod_that_ended_leaves_its_slots_and_its_number_to_others_at_once_and_stays_in_the_books() -> None:
    kernel, ledger = observe(to(1), to(2))
    kernel.forget(7)
    ledger.observe(kernel.read(), {}, NOW + 1)
    assert ledger.releases(NOW + 9) == [], "nothing goes before it was taken over"
    before = sum(total.counters.packets for total in ledger.totals()), ledger.series()
    ledger.settle(ledger.closing())
    assert {slot.line for slot in ledger.observe(kernel.read(), {}, NOW + 2).slots} == {None}
    kernel.release(ledger.releases(NOW + 2))
    assert kernel.read() == []
    assert ledger.observe(kernel.read(), {}, NOW + 3).vacated == {7}
    assert ledger.observe(kernel.read(), {}, NOW + 4).vacated == frozenset(), "once is enough"
    assert (sum(flow.packets for flow in ledger.flows()), ledger.series()) == before


def test_slots_that_nobody_can_read_yet_are_not_taken_for_none() -> None:
    kernel, ledger = observe(to(1), to(2))
    kept = ledger.memory()
    ledger = Ledger(memory=kept)
    for number in range(3):
        assert not ledger.observe(None, {7: RECORD}, NOW + number)
    assert (ledger.is_open, ledger.flows(), ledger.series(), ledger.totals()) == (False, [], [], [])
    assert set(ledger.memory().slots) == set(kept.slots), "what has to be kept is what was kept"
    ledger.observe(kernel.read(), {7: RECORD}, NOW + 4)
    assert (ledger.is_open, len(ledger.flows())) == (True, 2)


@pytest.mark.parametrize("restarts", [False, True], ids=["while the agent runs", "while it is away"])
def test_maps_that_somebody_removed_swallow_nothing_of_what_comes(restarts: bool) -> None:  # noqa: FBT001
    limits = Limits(top_destinations=1)
    kernel, ledger = CountingKernel(capacity=10), Ledger(limits)
    for key, count in ((to(1), 10), (to(2), 5)):
        kernel.send(key, count)
    ledger.observe(kernel.read(), {7: RECORD}, NOW)
    before = shown(ledger)
    kernel = CountingKernel(capacity=10)
    if restarts:
        ledger, before = Ledger(limits, memory=ledger.memory()), {"198.51.100.1": 0, "other": 0}
    ledger.observe(kernel.read(), {7: RECORD}, NOW + 1)
    assert shown(ledger) == before
    for key in (to(1), to(2)):
        kernel.send(key, 1)
    ledger.observe(kernel.read(), {7: RECORD}, NOW + 2)
    assert shown(ledger) == {name: size + 100 for name, size in before.items()}


MOVED = {
    "an evicted one and the live one after it": [5, 7],
    "two evicted ones and a live one": [5, 7, 2],
    "two of the same size": [5, 5, 5],
    "one that is as large as the live one": [5, 1, 1],
}


@pytest.mark.parametrize("seen", [True, False], ids=["that were seen evicted", "the last of them evicted unseen"])
@pytest.mark.parametrize("counts", MOVED.values(), ids=MOVED)
def test_slots_of_one_key_are_told_apart_when_an_upgrade_moves_them(counts: list[int], seen: bool) -> None:  # noqa: FBT001
    kernel, ledger = CountingKernel(capacity=10), Ledger()
    for position, count in enumerate(counts, 100):
        if position > 100:
            kernel.evict([(position - 1, 1)])
            ledger.observe(kernel.read(), {7: RECORD}, NOW)
        kernel.send(HTTPS, count)
        ledger.observe(kernel.read(), {7: RECORD}, NOW)
    before, kept = (ledger.series(), ledger.totals(), sum(flow.packets for flow in ledger.flows())), ledger.memory()
    assert before[2] == sum(counts)
    if not seen:
        kernel.evict([(99 + len(counts), 1)])
    for _ in range(2):
        kernel.carry_over()
        ledger = Ledger(memory=kept)
        ledger.observe(kernel.read(), {7: RECORD}, NOW)
        assert (ledger.series(), ledger.totals(), sum(flow.packets for flow in ledger.flows())) == before


def test_a_pod_that_takes_another_ones_name_takes_its_series() -> None:
    kernel, ledger = observe(to(1), to(2))
    kernel.send(to(3, pod=8), 1)
    ledger.observe(kernel.read(), {8: replace(RECORD, id=8)}, NOW + 5)
    assert shown(ledger) == {"198.51.100.3": 100, "other": 0}
    assert len(ledger.flows()) == 3


def test_slots_of_a_pod_that_nobody_knows_are_kept_until_it_is_known() -> None:
    kernel, ledger = CountingKernel(capacity=10), Ledger()
    kernel.send(HTTPS, 4)
    ledger.observe(kernel.read(), {}, NOW)
    assert (ledger.flows(), ledger.strangers) == ([], 1)
    ledger.observe(kernel.read(), {7: RECORD}, NOW + 1)
    assert ([flow.packets for flow in ledger.flows()], ledger.strangers) == ([4], 0)


def test_what_was_judged_stays_and_what_comes_is_judged_anew() -> None:
    """An edit in observe mode: bytes of before keep their reason, because no total may fall."""
    direct = replace(HTTPS, flow_class=FlowClass.BYPASSED, epoch=0)
    observed = replace(RECORD, enforced=False, epochs={})
    kernel, ledger = observe(direct, record=observed)
    kernel.send(direct, 5)
    edited = replace(observed, policy=RECORD.epochs[4])
    ledger.observe(kernel.read(), {7: edited}, NOW + 1)
    assert sorted(summary(flow)[3:] for flow in ledger.flows()) == [("tcp", "excluded_cidr", 5), ("tcp", "observed", 1)]


def test_only_idle_slots_without_a_series_are_evicted_the_oldest_first() -> None:
    kernel, ledger = CountingKernel(capacity=10), Ledger(Limits(top_destinations=1))
    kernel.send(to(0), 50)
    for n in range(1, 10):
        kernel.send(to(n), 1)
        ledger.observe(kernel.read(), {7: RECORD}, NOW + n)
    assert ledger.victims(kernel.free, 10, NOW + 65) == [(101, 1), (102, 1)]
    assert ledger.victims(2, 10, NOW + 65) == []
    assert ledger.victims(kernel.free, 10, NOW + 30) == []


def test_no_more_are_evicted_while_enough_wait_to_be_released() -> None:
    kernel, ledger = observe(*map(to, range(10)))
    chosen = ledger.victims(kernel.free, 10, NOW + 61)
    assert len(chosen) == 2
    kernel.evict(chosen)
    ledger.observe(kernel.read(), {7: RECORD}, NOW + 61)
    assert ledger.victims(kernel.free, 10, NOW + 62) == []


def test_a_slot_that_would_be_alone_in_its_folded_slot_is_left_alone() -> None:
    lonely = replace(HTTPS, flow_class=FlowClass.BYPASSED, protocol=17)
    _, ledger = observe(to(1), lonely, to(2))
    assert ledger.victims(0, 10, NOW + 61) == [(100, 1), (102, 1)]


def test_leaks_are_told_since_the_start_and_lately() -> None:
    leak = replace(HTTPS, flow_class=FlowClass.BYPASSED)
    kernel, ledger = observe(leak)
    assert ledger.leaked(NOW) == Leaked(), "what is found at the start leaked before it"
    kernel.send(leak, 2)
    ledger.observe(kernel.read(), {7: RECORD}, NOW + 10)
    kernel.send(in_epoch(leak, 4), 2)
    ledger.observe(kernel.read(), {7: RECORD}, NOW + 20)
    assert ledger.leaked(NOW + 30) == ledger.leaks(NOW + 30)[7] == Leaked(1, 200, 1, 200)
    assert ledger.leaked(NOW + 700) == Leaked(1, 200, 0, 0)


def test_a_total_is_kept_per_verdict_reason_and_protocol() -> None:
    _, ledger = observe(HTTPS, to(1), to(2, protocol=17, flow_class=FlowClass.BYPASSED))
    assert {total.account: total.counters.packets for total in ledger.totals()} == {
        Account(Verdict.INTERCEPTED, Reason.INCLUDED, "tcp"): 2,
        Account(Verdict.BYPASSED, Reason.NON_TCP, "udp"): 1,
    }
