"""What ``docs/reference`` names, a real agent shows: every metric, every field, every route."""

import json
import re

import pytest

from docs.source.http import FLOW_FIELDS, POD_FIELDS, routes
from docs.source.metrics import CONDITIONAL, families
from tests.lab import Cgroup, Dial, PodCgroups, Topology
from tests.lab.agent import Manifest, RunningAgent

pytestmark = pytest.mark.kernel

UID = "77aa01b2-uid"


def test_a_real_agent_shows_what_the_reference_names_and_nothing_else(agent: RunningAgent, kubepods: Cgroup) -> None:
    cgroups = PodCgroups(kubepods.child("kubepods"), UID)
    with Topology(cgroups=cgroups) as lab:
        agent.configure("ranges: {partner: [198.51.100.0/24]}\n")
        agent.add(Manifest("web", lab.pod.path, uid=UID, containers={"app": "app", "sidecar": "istio-proxy"}))
        agent.settle()
        agent.wait(lambda: agent.pod("web")["counted_by"])
        lab.client.connect(Dial("203.0.113.10", 443))
        agent.wait(agent.flows)

        shown = dict(re.findall(r"^# TYPE (\S+) (\S+)$", agent.get("/metrics", inner=False)[1], re.MULTILINE))
        named = {family.name: family.kind for family in families()}
        assert {name: kind for name, kind in shown.items() if named.get(name) != kind} == {}
        assert named.keys() - shown.keys() <= CONDITIONAL.keys()
        assert [set(flow) for flow in agent.flows()] == [set(FLOW_FIELDS)]
        assert set(agent.pod("web")) == set(POD_FIELDS)
        for listener, route, _ in routes():
            assert route.resource
            path = route.resource.canonical.replace("{namespace}", "default").replace("{name}", "web")
            status, text = agent.get(path, inner=listener == "inner")
            if path == "/api/v1/explain":
                assert (status, "error" in json.loads(text)) == (400, True)  # it wants to know what to explain
            else:
                assert (status, bool(text)) == (200, True), path
