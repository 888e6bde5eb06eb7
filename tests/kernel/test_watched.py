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
from tests.kernel.losses import CAPACITY, crowd, flood
from tests.kernel.test_counting_guard import sends_frames
from tests.kernel.watched import CONFIGURATION, Watched, stolen_table, watching
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

DOWN, DIFFERS = "count(up{", "count(nodeagent_rules_in_sync{"
UNSEEN, CUT, LOST = (
    "nodeagent_unseen_packets_total",
    "nodeagent_egress_overflow_bytes_total",
    "nodeagent_bpf_lost_updates_total",
)
ZERO = (DOWN, DIFFERS, UNSEEN, CUT, LOST)
"""Parts of expressions that are rightly 0 as long as all is well.  Each has a test below that makes it speak."""

FIRING = {
    "UnexpectedEgressBypass",
    "EgressImpersonatesProxy",
    "PreexistingConnectionsBypass",
    "QuicBypass",
    "NodeagentDriftReturns",
    "NodeagentRefusesPods",
    "NodeagentPodsPending",
    "NodeagentSidecarsSilent",
    "NodeagentAnnotationsRejected",
    "NodeagentConfigRejected",
}
"""What the traffic, and those who stir, deserve."""

STAGED = {
    *("EgressBypassRulesMissing", "RedirectRulesOutOfSync", "NodeagentDown"),
    *("NodeagentBlind", "NodeagentBpfMapNearFull"),
}
"""What tests below make fire; the first three, they make clear as well."""

LEAKING = {"UnexpectedEgressBypass", "EgressImpersonatesProxy", "PreexistingConnectionsBypass"}
STIRRED = {"NodeagentDriftReturns", "NodeagentAnnotationsRejected", "NodeagentConfigRejected"}
"""Those of them that clear when the leaks, and the stirring, end."""

SILENT = {
    "BypassShareJump": "source_namespace:nodeagent_egress_bypassed:ratio_rate5m",
    "NodeagentMissingOnNode": 'label_replace(up{job="nodeagent"}, "node", "$1", "instance", "(.*)")',
    "NodeagentCountingDegraded": "nodeagent_bpf_map_capacity > 0",
    "NodeagentStateNotKept": "nodeagent_state_kept == 1",
    "NodeagentSeriesCapNear": "instance:nodeagent_egress_series:ratio > 0",
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


def panels(part: str) -> list[str]:
    """Return the expressions of all panels, of all dashboards, that have this part."""
    found = [expr for expr in PANELS.values() if part in expr]
    assert found
    return found


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


LEAKS = 'reason=~"before_rules|'
NOW = "[$__rate_interval]"
"""What all panels of leaks have in their expressions, and no other panel; those that say what leaks now."""


def values(watched: Watched, expr: str) -> list[float]:
    return [sample.value for sample in watched.prometheus.query(chosen(expr))]


def missing(watched: Watched) -> list[list[Sample]]:
    """Return, for each panel that says who leaks and why, what leaks now because rules are missing."""
    by_reason = [expr for expr in panels(LEAKS) if "reason)" in expr and NOW in expr]
    found = [watched.prometheus.query(chosen(expr)) for expr in by_reason]
    return [[s for s in samples if s.labels["reason"] == "rules_missing" and s.value > 0] for samples in found]


def test_a_staged_leak_is_seen_raises_its_alerts_and_both_clear_after_the_repair(watched: Watched) -> None:
    both = {"EgressBypassRulesMissing", "RedirectRulesOutOfSync"}
    assert both.isdisjoint(watched.prometheus.firing())
    with stolen_table(watched.lab.pod):
        watched.wait(lambda: both <= watched.prometheus.firing(), "the leak's alerts")
        assert all(missing(watched))
        for expr in panels(DIFFERS):
            assert values(watched, expr) == [1]
    watched.agent.wait(lambda: watched.agent.pod("web")["in_sync"])
    watched.wait(lambda: both.isdisjoint(watched.prometheus.firing()), "the end of the leak's alerts")
    watched.wait(lambda: not any(missing(watched)), "the end of the leak")
    for expr in panels(DIFFERS):
        assert values(watched, expr) == [0]


def test_all_alerts_and_panels_of_leaks_clear_when_the_leaks_and_the_stirring_end(watched: Watched) -> None:
    watched.stirs = watched.leaks = False
    passing = LEAKING | STIRRED
    watched.wait(lambda: passing.isdisjoint(watched.prometheus.firing()), "the end of the alerts")
    now = [expr for expr in panels(LEAKS) if NOW in expr]
    assert len(now) == 2 * len(("fleet", "node", "pod"))
    for expr in now:
        watched.wait(lambda expr=expr: set(values(watched, expr)) == {0.0}, expr)  # type: ignore[misc]
    watched.leaks = True


def test_an_agent_that_is_killed_is_missed_until_it_is_back(watched: Watched) -> None:
    watched.agent.kill()
    watched.wait(lambda: "NodeagentDown" in watched.prometheus.firing(), "the alert")
    for expr in panels(DOWN):
        assert values(watched, expr) == [1]
    watched.agent.start()
    watched.wait(lambda: "NodeagentDown" not in watched.prometheus.firing(), "the end of the alert")


class Losses:
    """What is lost on purpose; again and again, because a rate needs more than one scrape."""

    def __init__(self, watched: Watched) -> None:
        self._watched, self._is_full = watched, False

    def frames(self) -> None:
        """Send what no socket hook sees."""
        sends_frames(self._watched.lab)

    def crowd(self) -> None:
        """Leave room in metrics for one destination a pod; others are dialled all the time."""
        crowd(self._watched.agent, CONFIGURATION)

    def flood(self) -> None:
        """Send to more destinations than the kernel has slots."""
        flood(self._watched.lab, 200 if self._is_full else CAPACITY + 200)
        self._is_full = True


@pytest.fixture(scope="module")
def losses(watched: Watched) -> Losses:
    return Losses(watched)


LOSSES: dict[str, tuple[Callable[[Losses], None], str | None]] = {
    UNSEEN: (Losses.frames, "NodeagentBlind"),
    CUT: (Losses.crowd, None),
    LOST: (Losses.flood, "NodeagentBpfMapNearFull"),
}
"""Who makes it happen, and the alert that it raises.  The flood comes last: its slots stay taken for a minute."""


@pytest.mark.parametrize("metric", LOSSES)
def test_a_loss_that_is_staged_is_on_each_panel_and_raises_its_alert(
    metric: str, losses: Losses, watched: Watched
) -> None:
    stage, alert = LOSSES[metric]
    awaited = set(panels(metric))

    def is_told() -> bool:
        stage(losses)
        awaited.difference_update({expr for expr in awaited if any(value > 0 for value in values(watched, expr))})
        return not awaited and (alert is None or alert in watched.prometheus.firing())

    watched.wait(is_told, f"{metric} on its panels")


def test_whatever_may_be_zero_has_a_test_that_makes_it_speak() -> None:
    assert set(ZERO) == {DOWN, DIFFERS, *LOSSES}
