"""What /metrics says: to promtool, to two parsers, to hostile names, and to many scrapers."""

import gzip
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from nodeagent.ledger import Account, Ledger, SeriesValue, Total
from nodeagent.metrics import Durations, Exposition, MapHealth, MetricsView, render
from nodeagent.model import Counters, FlowClass, FlowKey, PodName, PodRecord, Policy, Reason, Verdict
from tests.cases.slots import CountingKernel

OPENMETRICS = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"  # noqa: E501  # as Prometheus 2.42 sends it
EXCLUDED = Account(Verdict.BYPASSED, Reason.EXCLUDED_CIDR, "tcp")
LEAK = Account(Verdict.BYPASSED, Reason.RULES_MISSING, "tcp")
COUNTERS = Counters(2, 30, 40, 5000, 600, 70, 8000)
CART = PodName("shop", "cart-0", "3b1e")

EMPTY = MetricsView(version="1.2.3", kernel="6.1.0")
FULL = MetricsView(
    version="1.2.3",
    kernel="6.1.0",
    backends=("nft", "legacy"),
    series=(SeriesValue("shop", "cart-0", "payments-db", EXCLUDED, COUNTERS),),
    totals=(Total("shop", "cart-0", EXCLUDED, COUNTERS), Total("shop", "cart-0", LEAK, COUNTERS)),
    pods=(CART,),
    detailed=True,
    overflow_bytes=77,
    maps=(MapHealth("slots", 12, 16384, 3),),
    in_sync={CART: True, PodName("shop", "cart-1", "9"): False},
    pod_states={"intercepted": 2},
    reconciliations={"ok": 4, "failed": 1},
    reconciliation_durations=Durations().observe(0.002).observe(99),
    times_to_intercept=Durations().observe(0.3),
    late_pods=1,
    drift_repairs=2,
    refusals={"wrong_netns": 1},
    annotation_rejections={"syntax": 3},
    config_reloads={"applied": 1},
    watch_age_seconds=12.5,
    unseen_packets=0,
    excluded_ranges={"lan": 2},
    troubles={"counting": True, "state": False},
)


def samples(view: MetricsView, accept: str = "") -> dict[str, Sample]:
    """Return all samples by name and labels, as a scraper reads them; fails on a duplicate."""
    kind, body = render(view, accept)
    parse = parse_openmetrics if kind.startswith("application/openmetrics-text") else parse_text
    found = [sample for family in parse(body.decode()) for sample in family.samples]
    by_text = {spell(sample): sample for sample in found}
    assert len(by_text) == len(found)
    return by_text


def spell(sample: Sample) -> str:
    return f"{sample.name}{{{','.join(f'{k}={v}' for k, v in sample.labels.items())}}}"


@pytest.mark.parametrize("view", [EMPTY, FULL], ids=["an agent without pods", "an agent with everything"])
def test_promtool_has_nothing_to_say(view: MetricsView) -> None:
    promtool = shutil.which("promtool")
    assert promtool, (
        "promtool is missing: make setup installs Debian's package prometheus (requirements/debian-tests.txt)"
    )
    found = subprocess.run([promtool, "check", "metrics"], input=render(view)[1], capture_output=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")


CONTRACT = """
egress_bytes_total egress_connections_total egress_packets_total egress_received_bytes_total
egress_verdict_bytes_total egress_series egress_series_limit egress_overflow_bytes_total
bpf_map_entries bpf_map_capacity bpf_lost_updates_total rules_in_sync pods
reconciliations_total reconciliation_duration_seconds_bucket reconciliation_duration_seconds_sum
reconciliation_duration_seconds_count time_to_intercept_seconds_bucket time_to_intercept_seconds_sum
time_to_intercept_seconds_count late_pods_total drift_repairs_total refusals_total annotation_rejections_total
config_reloads_total watch_age_seconds unseen_packets_total build_info backend_info state_kept
trouble excluded_range_pods skipped_pods unanswered_pods
"""


@pytest.mark.parametrize("accept", ["", OPENMETRICS], ids=["text", "OpenMetrics"])
def test_the_metrics_are_those_of_the_contract(accept: str) -> None:
    names = {sample.name for sample in samples(FULL, accept).values()}
    assert names == {f"nodeagent_{name}" for name in CONTRACT.split()}


def test_a_series_carries_its_labels_and_counts() -> None:
    labels = "source_namespace=shop,source_pod=cart-0,destination=payments-db,protocol=tcp"
    labels += ",verdict=bypassed,reason=excluded_cidr"
    found = {text: sample.value for text, sample in samples(FULL).items() if "payments-db" in text}
    assert found == {
        f"nodeagent_egress_bytes_total{{{labels}}}": 5000,
        f"nodeagent_egress_connections_total{{{labels}}}": 2,
        f"nodeagent_egress_packets_total{{{labels}}}": 30,
        f"nodeagent_egress_received_bytes_total{{{labels}}}": 8000,
    }


def test_packets_and_received_bytes_are_off_by_default() -> None:
    names = {sample.name for sample in samples(replace(FULL, detailed=False)).values()}
    assert names.isdisjoint({"nodeagent_egress_packets_total", "nodeagent_egress_received_bytes_total"})


def test_a_pods_leaks_begin_at_zero_so_that_the_first_one_is_an_increase() -> None:
    found = samples(replace(EMPTY, pods=(CART,)))
    zeros = [text for text, sample in found.items() if "verdict_bytes" in text and sample.value == 0]
    assert [text.partition("reason=")[2] for text in zeros] == [
        "included}",
        "before_rules}",
        "conntrack_lost}",
        "impersonated_proxy}",
        "ipv6_unmanaged}",
        "preexisting}",
        "rules_missing}",
    ]


def test_what_is_unknown_is_not_shown() -> None:
    names = {sample.name for sample in samples(EMPTY).values()}
    assert names.isdisjoint({"nodeagent_watch_age_seconds", "nodeagent_unseen_packets_total"})


HOSTILE = {
    "a quote and a sample of its own": 'x"} 1\nnodeagent_pods{state="intercepted"} 99\n',
    "a backslash at the end": "x\\",
    "control bytes": "\x00\r\x1b[31m\x85\u2028",
    "a lone surrogate": "x\udcff",
    "an override of the direction of writing": "x\u202egnp.exe",
    "240 KiB": "x" * 245_760,
    "a comment": "x\n# EOF\n",
    "nothing": "",
}


@pytest.mark.parametrize("accept", ["", OPENMETRICS], ids=["text", "OpenMetrics"])
@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_nobody_injects_through_a_name(name: str, accept: str) -> None:
    honest = replace(FULL, in_sync={CART: True})
    view = replace(
        honest,
        series=(*FULL.series, SeriesValue(name, name, name, EXCLUDED, COUNTERS)),
        totals=(*FULL.totals, Total(name, name, EXCLUDED, COUNTERS)),
        in_sync={CART: True, PodName(name, name, "2"): True},
        refusals={"wrong_netns": 1, name: 1},
    )
    before, after = samples(honest, accept), samples(view, accept)
    new = after.keys() - before.keys()
    assert {after[text].name for text in new} == {
        "nodeagent_egress_bytes_total",
        "nodeagent_egress_connections_total",
        "nodeagent_egress_packets_total",
        "nodeagent_egress_received_bytes_total",
        "nodeagent_egress_verdict_bytes_total",
        "nodeagent_rules_in_sync",
        "nodeagent_refusals_total",
    }
    assert all(len(value) <= 256 for text in new for value in after[text].labels.values())
    changed = {text for text in before if after[text].value != before[text].value}
    assert changed == {"nodeagent_egress_series{}"}


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_names_are_parsed_back_and_their_sum_is_what_it_was(names: list[str]) -> None:
    series = tuple(SeriesValue(n, n, n, EXCLUDED, COUNTERS) for n in names)
    for accept in ("", OPENMETRICS):
        found = samples(replace(EMPTY, series=series), accept).values()
        assert sum(s.value for s in found if s.name == "nodeagent_egress_bytes_total") == 5000 * len(names)


def test_names_that_look_alike_once_harmless_add_up() -> None:
    names = ["x" * 300 + end for end in "ab"]
    found = samples(replace(EMPTY, series=[SeriesValue(n, "p", "d", EXCLUDED, COUNTERS) for n in names]))
    assert [s.value for s in found.values() if s.name == "nodeagent_egress_bytes_total"] == [10_000]


def test_what_the_ledger_shows_is_what_is_scraped() -> None:
    kernel, ledger = CountingKernel(capacity=50), Ledger()
    record = PodRecord(CART, 7, Policy(), epochs={2: Policy()}, interfaces={2: "eth0"})
    for n in range(30):
        kernel.send(FlowKey(7, 71, ip_address(f"192.0.2.{n}"), 443, 6, 2, 2, FlowClass(n % 4)), n)
    ledger.observe(kernel.read(), {7: record}, 0)
    view = replace(EMPTY, series=ledger.series(), totals=ledger.totals(), pods=ledger.pods())
    found = samples(view).values()

    def scraped(metric: str) -> dict[tuple[str, str], float]:
        return total((s.labels["verdict"], s.labels["reason"], s.value) for s in found if s.name == metric)

    assert scraped("nodeagent_egress_bytes_total") == scraped("nodeagent_egress_verdict_bytes_total")
    assert sum(scraped("nodeagent_egress_bytes_total").values()) == 100 * sum(range(30))


def total(rows: Iterable[tuple[str, str, float]]) -> dict[tuple[str, str], float]:
    """Return sums by verdict and reason, zeros left out."""
    sums: dict[tuple[str, str], float] = {}
    for verdict, reason, value in rows:
        sums[verdict, reason] = sums.get((verdict, reason), 0) + value
    return {key: value for key, value in sums.items() if value}


# -- formats and scrapers


FORMATS = {
    "nothing said": ("", "text/plain"),
    "anything": ("*/*", "text/plain"),
    "Prometheus": (OPENMETRICS, "application/openmetrics-text"),
    "OpenMetrics without a version": ("application/openmetrics-text", "application/openmetrics-text"),
    "a version of OpenMetrics that is not ours": ("application/openmetrics-text;version=2.0.0", "text/plain"),
    "text preferred": ("application/openmetrics-text;q=0.1,text/plain", "text/plain"),
    "OpenMetrics refused": ("application/openmetrics-text;q=0", "text/plain"),
    "garbage": (";;=,q=,application/openmetrics-text;q=x;version", "text/plain"),
    "a browser": ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/plain"),
}


@pytest.mark.parametrize(("accept", "expected"), FORMATS.values(), ids=FORMATS)
def test_the_format_is_negotiated(accept: str, expected: str) -> None:
    kind, body = render(FULL, accept)
    assert kind.partition(";")[0] == expected
    assert body.endswith(b"# EOF\n") == (expected != "text/plain")


def counting_views() -> tuple[Callable[[], MetricsView], list[int]]:
    """Return a source of views, and how often each was asked for."""
    asked: list[int] = []

    def view() -> MetricsView:
        asked.append(len(asked))
        return replace(EMPTY, late_pods=len(asked))

    return view, asked


def test_a_storm_of_scrapes_is_one_rendering_a_second() -> None:
    exposition, (view, asked) = Exposition(), counting_views()
    bodies = {exposition.answer(view, 100 + n / 500).body for n in range(500)}
    assert (len(asked), len(bodies)) == (1, 1)
    exposition.answer(view, 101.0)
    assert len(asked) == 2


def test_what_nobody_would_be_answered_with_is_let_go_of() -> None:
    exposition, (view, asked) = Exposition(), counting_views()
    exposition.answer(view, 100, encodings="gzip")
    exposition.forget(100.5)
    exposition.answer(view, 100.9)
    assert len(asked) == 1
    exposition.forget(101.5)
    exposition.answer(view, 100.9)  # what is gone cannot be given, however fresh it was
    assert len(asked) == 2


def test_gzip_holds_the_same_text() -> None:
    exposition, (view, _) = Exposition(), counting_views()
    plain = exposition.answer(view, 5)
    zipped = exposition.answer(view, 5.5, encodings="gzip, deflate")
    assert (plain.encoding, zipped.encoding, gzip.decompress(zipped.body)) == (None, "gzip", plain.body)
    assert gzip.decompress(exposition.answer(view, 7, encodings="gzip").body) != plain.body


def test_durations_are_counted_once_and_shown_added_up() -> None:
    found = samples(FULL)
    name = "nodeagent_reconciliation_duration_seconds"
    assert found[f"{name}_bucket{{le=0.001}}"].value == 0
    assert found[f"{name}_bucket{{le=0.0025}}"].value == 1
    assert found[f"{name}_bucket{{le=30.0}}"].value == 1
    assert found[f"{name}_bucket{{le=+Inf}}"].value == found[f"{name}_count{{}}"].value == 2
    assert found[f"{name}_sum{{}}"].value == 99.002
