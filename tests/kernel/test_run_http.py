"""What the agent says over HTTP, to whom, and what it refuses to say."""

import http.client
import json
from contextlib import closing
from urllib.parse import quote

import pytest

from tests.lab.agent import Manifest, RunningAgent

pytestmark = pytest.mark.kernel


def test_the_open_listener_has_three_answers_and_no_more(agent: RunningAgent) -> None:
    assert agent.get("/healthz", inner=False) == (200, "ok\n")
    agent.wait(lambda: agent.get("/readyz", inner=False)[0] == 200)
    assert agent.metrics()['nodeagent_pods{state="intercepted"}'] == 0
    for path in ("/", "/api/v1/flows", "/api/v1/pods", "/api/v1/config"):
        assert agent.get(path, inner=False)[0] == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        pytest.param("localhost", 200, id="by name"),
        pytest.param("127.0.0.1:12345", 200, id="through a port-forward"),
        pytest.param("[::1]:80", 200, id="by IPv6"),
        pytest.param("evil.example", 403, id="a name that somebody has resolve to us"),
        pytest.param("127.0.0.1.evil.example", 403, id="a name that looks like an address"),
        pytest.param("", 403, id="no name at all"),
    ],
)
def test_the_inner_listener_answers_to_its_own_names_only(agent: RunningAgent, host: str, status: int) -> None:
    assert agent.get("/api/v1/pods", host or " ")[0] == status


def test_answers_are_bounded_filtered_and_sorted(agent: RunningAgent) -> None:
    assert agent.ask("/api/v1/flows?limit=1") == {"flows": [], "total": 0, "next": None}
    senseless = ("sort=--bytes", "verdict=blocked", "reason=because", "address=here", "leaks=perhaps")
    for query in ("limit=x", "offset=-1", "sort=password", "colour=red", "limit=" + "9" * 30, *senseless):
        status, text = agent.get(f"/api/v1/flows?{query}")
        assert status == 400, query
        assert "error" in json.loads(text)


@pytest.mark.parametrize("query", ["", "pod=web", "pod=default/web", "pod=default/web&to=here", "pod=a/b&to=1.2.3.4:5"])
def test_a_question_that_makes_no_sense_is_told_so(agent: RunningAgent, query: str) -> None:
    status, text = agent.get(f"/api/v1/explain?{quote(query, safe='=&/:')}")
    assert status == 400
    assert json.loads(text)["error"]


def test_nothing_is_written_and_nothing_is_kept_by_browsers(agent: RunningAgent) -> None:
    with closing(http.client.HTTPConnection(agent.api_at, timeout=30)) as connection:
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        for method in ("POST", "PUT", "DELETE"):
            connection.request(method, "/api/v1/config", body="{}")
            refused = connection.getresponse()
            refused.read()
            assert refused.status == 405
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers


def test_commands_say_that_no_agent_answers(agent: RunningAgent) -> None:
    agent.stop()
    for command in (["flows"], ["status"], ["top", "--once"], ["explain", "--pod", "a/b", "--to", "192.0.2.1:80"]):
        done = agent.command(*command)
        assert done.returncode == 5, command
        assert "no agent answers" in done.stderr


def test_two_agents_cannot_listen_at_one_place(agent: RunningAgent, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = agent.metrics_at
    other = RunningAgent(tmp_path_factory.mktemp("other"), agent.pods_dir, agent.pods_dir)
    other.configuration.write_text(f'http: {{metrics: "{place}", ui: "127.0.0.1:0"}}\n')
    with pytest.raises(Exception, match="cannot listen"):
        other.start()
    other.kill()


def test_what_a_pods_owner_writes_reaches_no_label_unescaped(agent: RunningAgent) -> None:
    agent.add(Manifest("web", "/nowhere", {"excludeOutboundPorts": '1"} 9\nevil 1'}))
    agent.wait(lambda: agent.pod("web").get("rejected"))
    assert agent.metrics()['nodeagent_annotation_rejections_total{reason="syntax"}'] == 1
    assert "evil" not in agent.get("/metrics", inner=False)[1]
