"""Dashboards and manifests: generated as they are committed, valid, and free of loose ends."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from daemonset.observability.files import HOME, generated
from daemonset.observability.recording import RECORDING
from daemonset.observability.words import LEAKED
from nodeagent.ledger import LEAKS
from nodeagent.metrics import render
from tests.unit.test_metrics import FULL

Json = dict[str, Any]

FILES = generated()
DASHBOARDS = {name: json.loads(text) for name, text in FILES.items() if name.endswith(".json")}
GRID = 24
GRAFANAS = {"__rate_interval", "__range", "__url_time_range", "datasource"}
PROMETHEUS = {"up", "scrape_duration_seconds", "process_cpu_seconds_total", "process_resident_memory_bytes"}
PROGRAMMERS = {f"nodeagent_programmer_{name}" for name in PROMETHEUS if name.startswith("process_")}


def panels(document: Json) -> Iterator[Json]:
    """Return all panels that show something."""
    return (panel for panel in document["panels"] if panel["type"] != "row")


def expressions(document: Json) -> Iterator[str]:
    """Return what is asked of Prometheus."""
    return (target["expr"] for panel in panels(document) for target in panel["targets"])


def links(found: object) -> Iterator[str]:
    """Return all URLs, wherever they are."""
    if isinstance(found, dict):
        if isinstance(found.get("url"), str):
            yield found["url"]
        found = list(found.values())
    if isinstance(found, list):
        for part in found:
            yield from links(part)


@pytest.fixture(params=DASHBOARDS)
def document(request: pytest.FixtureRequest) -> Json:
    """Each dashboard in turn."""
    found: Json = DASHBOARDS[request.param]
    return found


@pytest.mark.parametrize("name", FILES)
def test_what_is_committed_is_what_is_generated(name: str) -> None:
    assert (HOME / name).read_text() == FILES[name], "run `make dashboards`, and read the diff"


def test_nothing_generated_outlives_its_source() -> None:
    folders = {Path(name).parent for name in FILES}
    assert {str(path.relative_to(HOME)) for folder in folders for path in (HOME / folder).iterdir()} == set(FILES)


def known_to_grafana(document: Json) -> Json:
    """Return what remains of *document* when it is read into the types that are made from Grafana's own schemas."""
    plugins.register_default_plugins()
    found: Json = json.loads(JSONEncoder().encode(Dashboard.from_json(document)))
    return found


def test_a_dashboard_holds_nothing_that_grafanas_schema_does_not_know(document: Json) -> None:
    assert known_to_grafana(document) == document


@pytest.mark.parametrize(
    "path",
    [
        pytest.param([], id="of the dashboard"),
        pytest.param(["panels", 1], id="of a panel"),
        pytest.param(["panels", 1, "options"], id="of a panel's own options"),
        pytest.param(["panels", 1, "targets", 0], id="of a query"),
        pytest.param(["panels", 1, "fieldConfig", "defaults"], id="of a field's options"),
        pytest.param(["panels", 6, "fieldConfig", "defaults", "custom"], id="of a graph's own options"),
        pytest.param(["templating", "list", 1], id="of a variable"),
    ],
)
def test_a_misspelt_key_is_noticed(path: list[str | int]) -> None:
    document = json.loads(FILES["dashboards/fleet.json"])
    place = document
    for step in path:
        place = place[step]
    place["mispelt"] = True
    assert known_to_grafana(document) != document


def test_a_dashboard_has_its_variables_first_of_all_the_data_source(document: Json) -> None:
    names = [variable["name"] for variable in document["templating"]["list"]]
    assert names[:2] == ["datasource", "cluster"]
    assert set(names) >= {"namespace", "pod"}
    used = set(re.findall(r"\$\{?([a-z_]\w*)", " ".join(expressions(document))))
    assert used <= {*names, *GRAFANAS}


def test_each_panel_says_what_it_is_and_asks_the_chosen_data_source(document: Json) -> None:
    for panel in panels(document):
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    numbers = [panel["id"] for panel in document["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_no_two_panels_share_a_place(document: Json) -> None:
    places = [panel["gridPos"] for panel in document["panels"]]
    assert all(place["x"] + place["w"] <= GRID for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


def test_each_link_leads_to_a_dashboard_and_sets_variables_that_it_has(document: Json) -> None:
    by_uid = {found["uid"]: {v["name"] for v in found["templating"]["list"]} for found in DASHBOARDS.values()}
    found = list(links(document))
    assert found
    for url in found:
        uid, _, query = url.removeprefix("/d/").partition("?")
        assert set(re.findall(r"var-(\w+)=", query)) <= by_uid[uid]
        assert "${datasource:queryparam}" in query
        assert "${__url_time_range}" in query


def test_every_metric_that_is_asked_for_exists() -> None:
    shown = {line.split("{")[0].split(" ")[0] for line in render(FULL)[1].decode().splitlines() if line[0] != "#"}
    known = shown | {rule.name for rule in RECORDING.rules} | PROMETHEUS | PROGRAMMERS
    known |= {"kube_node_status_condition"}  # kube-state-metrics
    rules = yaml.safe_load(FILES["rules/nodeagent.yaml"])["groups"]
    asked = [rule["expr"] for group in rules for rule in group["rules"]]
    asked += [expr for found in DASHBOARDS.values() for expr in expressions(found)]
    names = {name for expr in asked for name in re.findall(r"([a-z_:][a-z0-9_:]*)(?=[{\[)]| > | == | \* | / |$)", expr)}
    names = {name for name in names if re.match(r"nodeagent_|process_|scrape_|kube_|up$|.*:", name)}
    assert {"nodeagent_rules_in_sync", "up"} <= names
    assert names <= known


def test_recorded_series_are_used_or_meant_for_people() -> None:
    text = "".join(FILES.values())
    meant_for_people = {"cluster:nodeagent_egress_bypassed:ratio_rate5m"}
    unused = {rule.name for rule in RECORDING.rules if text.count(rule.name) < 3}  # rules are in two files
    assert unused <= meant_for_people


def test_leaks_are_those_of_the_ledger() -> None:
    assert set(LEAKED.split("|")) == {reason.value for reason in LEAKS}


def test_the_operators_objects_hold_the_same_rules_and_name_the_agents_by_node() -> None:
    rule = yaml.safe_load(FILES["monitoring/prometheusrule.yaml"])
    assert rule["kind"] == "PrometheusRule"
    assert rule["spec"] == yaml.safe_load(FILES["rules/nodeagent.yaml"])
    monitor = yaml.safe_load(FILES["monitoring/podmonitor.yaml"])
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert monitor["kind"] == "PodMonitor"
    assert endpoint["relabelings"][0]["targetLabel"] == "instance"
