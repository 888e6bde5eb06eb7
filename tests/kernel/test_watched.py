"""Every expression of every panel and rule, on a real Prometheus that scrapes a real agent under real traffic."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import yaml

from daemonset.observability.files import generated
from nodeagent.bpf.counting import detach
from tests.kernel.test_counting_guard import sends_frames
from tests.kernel.watched import Watched, stolen_table, watching
from tests.lab import Dial, TestCgroup
from tests.lab.prometheus import Sample, hasten_expression

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(900)]

FILES = generated()
RULES = [rule for group in yaml.safe_load(FILES["rules/nodeagent.yaml"])["groups"] for rule in group["rules"]]
CHOSEN = {
    "$__rate_interval": "10s",
    "$__range": "90s",
    "$cluster": "lab",
    "$node": "node-a",
    "$namespace": "default",
    "$pod": "web",
}

FRESH = count(100)
"""Addresses, by their last number, that nobody has dialled."""

NOTHING_LOST = "nothing is lost in the lab, and no packet passes unseen: a right 0, until a test below stages it"
ZERO = {
    "nodeagent_egress_overflow_bytes_total": NOTHING_LOST,
    "nodeagent_bpf_lost_updates_total": NOTHING_LOST,
    "nodeagent_unseen_packets_total": NOTHING_LOST,
    "count(up{": "the agent answers; another test stops it",
    "count(nodeagent_rules_in_sync{": "rules are in sync; another test steals them",
}
"""Expressions that are 0 here, and why; they return data all the same."""

FIRING = {
    "UnexpectedEgressBypass",
    "EgressImpersonatesProxy",
    "PreexistingConnectionsBypass",
    "QuicBypass",
    "NodeagentDriftReturns",
    "NodeagentRefusesPods",
    "NodeagentPodsPending",
    "NodeagentAnnotationsRejected",
    "NodeagentConfigRejected",
}
"""What the traffic, and those who stir, deserve."""

STAGED = {"EgressBypassRulesMissing", "RedirectRulesOutOfSync", "NodeagentDown"}
"""What tests below make fire, and clear."""

SILENT = {
    "BypassShareJump": "source_namespace:nodeagent_egress_bypassed:ratio_rate5m",
    "NodeagentMissingOnNode": 'label_replace(up{job="nodeagent"}, "node", "$1", "instance", "(.*)")',
    "NodeagentCountingDegraded": "nodeagent_bpf_map_capacity > 0",
    "NodeagentBlind": "nodeagent_unseen_packets_total",
    "NodeagentStateNotKept": "nodeagent_state_kept == 1",
    "NodeagentSeriesCapNear": "instance:nodeagent_egress_series:ratio > 0",
    "NodeagentBpfMapNearFull": "instance_map:nodeagent_bpf_map_entries:ratio > 0",
    "NodeagentWatchStale": "nodeagent_watch_age_seconds",
}
"""What must not fire here (promtool shows that it can), and what it looks at, which must be there."""


PANELS = {
    f"{name}: {panel['title']}, {number}": target["expr"]
    for name in ("fleet", "node", "pod")
    for panel in json.loads(FILES[f"dashboards/{name}.json"])["panels"]
    for number, target in enumerate(panel.get("targets", ()), 1)
}
"""Each expression of each panel."""


def chosen(expr: str) -> str:
    """Return a panel's expression as Grafana sends it, at the lab's speed."""
    text = hasten_expression(expr)
    for variable, value in CHOSEN.items():
        text = text.replace(variable, value)
    return text


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Iterator[Watched]:
    """Watch one pod for all tests of this file."""
    with TestCgroup() as node, watching(tmp_path_factory.mktemp("watched"), node, programs) as running:
        yield running
    detach()


@pytest.mark.parametrize("expr", PANELS.values(), ids=PANELS)
def test_a_panel_shows_what_there_is(watched: Watched, expr: str) -> None:
    is_zero = any(part in expr for part in ZERO)
    new = Dial(f"203.0.113.{next(FRESH)}", 443) if "unless sum by" in expr else None

    def has_data() -> bool:
        if new:
            watched.lab.client.connect(new)
        found = watched.prometheus.query(chosen(expr))
        return bool(found) and (is_zero or any(sample.value > 0 for sample in found))

    watched.wait(has_data, expr)
    if is_zero:
        assert {sample.value for sample in watched.prometheus.query(chosen(expr))} == {0.0}


def test_promtool_has_nothing_to_say_of_a_real_scrape(watched: Watched) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: make test-kernel installs it (requirements/debian-tests.txt)"
    status, text = watched.agent.get("/metrics", inner=False)
    assert status == 200
    assert "process_cpu_seconds_total" in text
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_dead_excludes_are_those_that_nobody_dials(watched: Watched) -> None:
    found = watched.prometheus.query(chosen(PANELS["fleet: Dead excludes, 1"]))
    assert {sample.labels["range"]: sample.value for sample in found} == {"attic": 1}


@pytest.mark.parametrize("name", [rule["record"] for rule in RULES if "record" in rule])
def test_a_recorded_series_is_there(watched: Watched, name: str) -> None:
    watched.wait(lambda: any(sample.value > 0 for sample in watched.prometheus.query(name)), name)


@pytest.mark.parametrize("name", sorted(FIRING))
def test_an_alert_fires_for_what_is_wrong_here_and_says_so(watched: Watched, name: str) -> None:
    watched.wait(lambda: name in watched.prometheus.firing(), name)
    for alert in watched.prometheus.alerts():
        assert "<no value>" not in str(alert["annotations"])
        assert "error" not in str(alert["annotations"])


@pytest.mark.parametrize(("name", "looks_at"), SILENT.items())
def test_an_alert_is_silent_and_not_blind(watched: Watched, name: str, looks_at: str) -> None:
    assert watched.prometheus.query(looks_at)
    assert name not in watched.prometheus.firing()


def test_no_alert_is_left_out() -> None:
    assert {rule["alert"] for rule in RULES if "alert" in rule} == FIRING | STAGED | set(SILENT)


def leak(watched: Watched) -> list[Sample]:
    return watched.prometheus.query(
        'sum(rate(nodeagent_egress_verdict_bytes_total{source_pod="web", reason="rules_missing"}[10s])) > 0'
    )


def test_a_staged_leak_is_seen_raises_its_alerts_and_both_clear_after_the_repair(watched: Watched) -> None:
    both = {"EgressBypassRulesMissing", "RedirectRulesOutOfSync"}
    assert both.isdisjoint(watched.prometheus.firing())
    panel = PANELS["fleet: Pods out of sync, 1"]
    with stolen_table(watched.lab.pod):
        watched.wait(lambda: both <= watched.prometheus.firing(), "the leak's alerts")
        assert leak(watched)
        assert [sample.value for sample in watched.prometheus.query(chosen(panel))] == [1]
        by_pod = PANELS["fleet: Leaks by pod, 1"]
        reasons = {s.labels["reason"] for s in watched.prometheus.query(chosen(by_pod)) if s.value > 0}
        assert "rules_missing" in reasons
    watched.agent.wait(lambda: watched.agent.pod("web")["in_sync"])
    watched.wait(lambda: both.isdisjoint(watched.prometheus.firing()), "the end of the leak's alerts")
    watched.wait(lambda: not leak(watched), "the end of the leak")
    assert [sample.value for sample in watched.prometheus.query(chosen(panel))] == [0]


def test_what_was_stirred_clears_when_it_settles(watched: Watched) -> None:
    passing = {"NodeagentDriftReturns", "NodeagentAnnotationsRejected", "NodeagentConfigRejected"}
    watched.stirs = False
    watched.wait(lambda: passing.isdisjoint(watched.prometheus.firing()), "the end of the stirring")


def test_an_agent_that_is_killed_is_missed_until_it_is_back(watched: Watched) -> None:
    watched.agent.kill()
    watched.wait(lambda: "NodeagentDown" in watched.prometheus.firing(), "the alert")
    panel = PANELS["fleet: Agents that do not answer, 1"]
    assert [sample.value for sample in watched.prometheus.query(chosen(panel))] == [1]
    watched.agent.start()
    watched.wait(lambda: "NodeagentDown" not in watched.prometheus.firing(), "the end of the alert")


def frames(watched: Watched) -> None:
    """Send what no socket hook sees."""
    sends_frames(watched.lab)


LOSSES = {
    "nodeagent_unseen_packets_total": frames,
}


@pytest.mark.parametrize(("metric", "stage"), LOSSES.items(), ids=LOSSES)
def test_a_panel_shows_a_loss_that_is_staged(watched: Watched, metric: str, stage: Callable[[Watched], None]) -> None:
    exprs = [expr for expr in PANELS.values() if metric in expr]
    assert exprs
    for expr in exprs:

        def is_shown(expr: str = expr) -> bool:
            stage(watched)
            return any(sample.value > 0 for sample in watched.prometheus.query(chosen(expr)))

        watched.wait(is_shown, expr)
