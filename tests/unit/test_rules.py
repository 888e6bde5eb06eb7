"""Recording and alerting rules: what promtool says of them, when they fire, and what they say then."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from daemonset.observability.alerts import ALERTS
from daemonset.observability.files import HOME
from daemonset.observability.recording import RECORDING
from daemonset.observability.rule import Alert
from tests.cases.alerts import CASES, HEALTHY, AlertCase

RULES = HOME / "rules" / "nodeagent.yaml"
RUNBOOKS = HOME.parent / "docs" / "runbooks"
EVERY = {alert.name: alert for group in ALERTS for alert in group.rules if isinstance(alert, Alert)}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    assert program, (
        "promtool is missing: make setup installs Debian's package prometheus (requirements/debian-tests.txt)"
    )
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def check(folder: Path, series: Mapping[str, str], expected: Sequence[Mapping[str, Any]]) -> None:
    """Let promtool evaluate the rules over *series*, one sample a minute, and compare."""
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "group_eval_order": [group.name for group in (RECORDING, *ALERTS)],  # else any order, another in each run
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": list(expected),
            }
        ],
    }
    path = folder / "test.yaml"
    path.write_text(json.dumps(document))
    done = promtool("test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def said(case: AlertCase) -> dict[str, str]:
    """Return the annotations as the case has them."""
    found: dict[str, str] = EVERY[case.alert].document()["annotations"]
    texts = {f"{{{{ $labels.{name} }}}}": value for name, value in case.labels.items()} | dict(case.said)
    for template, text in texts.items():
        found = {key: value.replace(template, text) for key, value in found.items()}
    assert "{{" not in "".join(found.values()), f"the case does not say what becomes of {found}"
    return found


def test_promtool_has_nothing_to_say() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(EVERY) + len(RECORDING.rules)} rules found" in done.stdout


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.id}")
def test_an_alert_fires_says_what_is_wrong_and_clears(case: AlertCase, tmp_path: Path) -> None:
    severity = EVERY[case.alert].severity.value
    firing = {"exp_labels": {**case.labels, "severity": severity}, "exp_annotations": said(case)}
    times: dict[int, list[object]] = {case.quiet: [], case.fires: [firing], case.clears: []}
    check(tmp_path, case.series, [
        {"eval_time": f"{minute}m", "alertname": case.alert, "exp_alerts": alerts} for minute, alerts in times.items()
    ])  # fmt: skip


def test_bypass_as_configured_raises_no_alert(tmp_path: Path) -> None:
    silence = [
        {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []} for name in EVERY for minute in (30, 1500)
    ]
    check(tmp_path, HEALTHY, silence)


def test_each_alert_is_shown_to_fire() -> None:
    assert {case.alert for case in CASES} == set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_each_alert_has_a_runbook_that_says_what_it_means_how_to_see_it_and_what_to_do(name: str) -> None:
    page = (RUNBOOKS / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == ["What it means", "How to see it", "What to do"]
    assert f"**{EVERY[name].severity.value}**" in page
    assert EVERY[name].document()["annotations"]["runbook_url"].endswith(f"/{name}.md")


def test_no_runbook_outlives_its_alert() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == {*EVERY, "README"}
    index = (RUNBOOKS / "README.md").read_text()
    assert re.findall(r"^\| \[(\w+)\]\(\1\.md\)", index, re.MULTILINE) == list(EVERY)


@pytest.mark.parametrize("name", [rule.name for rule in RECORDING.rules])
def test_recorded_series_are_called_level_metric_operations(name: str) -> None:
    assert re.fullmatch(r"[a-z_]+:nodeagent_[a-z_]+:[a-z0-9_]+", name)
