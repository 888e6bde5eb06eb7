"""The agent on a real node: pods of the API server, found by their processes, proven, and programmed."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.agent import NodesAgent
from tests.cluster.pods import Pod, Pods, listening

pytestmark = pytest.mark.cluster

PORT, PROXY_PORT = 8080, 15001
INTERCEPT = "nodeagent.io/intercept"
ANSWERS = """
import socket, sys
with socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    while True:
        peer, _ = server.accept()
        with peer:
            peer.sendall(sys.argv[2].encode())
"""
DIALS = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as sock:
    sys.stdout.write(sock.recv(16).decode())
"""


@pytest.fixture
def agent(node: Cluster, tmp_path: Path) -> Iterator[NodesAgent]:
    with NodesAgent(node, tmp_path / "agent.log") as running:
        yield running


@pytest.fixture
def far(pods: Pods) -> Pod:
    """Return a pod, not ours, that says "direct" to whoever reaches it."""
    return pods.run("far", "python3", "-c", ANSWERS, str(PORT), "direct", container=listening(PORT))


def run_web(pods: Pods, **annotations: str) -> Pod:
    """Run a pod with a proxy that says "proxy"."""
    given = {f"nodeagent.io/{name}": value for name, value in annotations.items()}
    command = ("python3", "-c", ANSWERS, str(PROXY_PORT), "proxy")
    return pods.run("web", *command, container=listening(PROXY_PORT), annotations=given)


def annotate(pod: Pod, **annotations: str | None) -> None:
    given = {f"nodeagent.io/{name}": value for name, value in annotations.items()}
    pod.cluster.api.patch(pod.path, {"metadata": {"annotations": given}})


def dial(pod: Pod, far: Pod) -> set[str]:
    """Return who answers, over all families."""
    return {pod.exec("python3", "-c", DIALS, address, str(PORT)) for address in far.addresses}


def test_a_pods_connections_take_the_path_that_its_annotations_say(agent: NodesAgent, pods: Pods, far: Pod) -> None:
    web = run_web(pods, intercept="enabled")
    agent.wait(lambda: agent.is_settled(web))
    assert dial(web, far) == {"proxy"}
    assert agent.pod(far)["state"] == "skipped"
    assert agent.pod(far)["detail"].startswith("not opted in: ")

    epoch = agent.pod(web)["epoch"]
    annotate(web, excludeOutboundPorts=str(PORT))
    agent.wait(lambda: agent.is_settled(web, after=epoch))
    assert dial(web, far) == {"direct"}

    annotate(web, excludeOutboundPorts=None)
    agent.wait(lambda: agent.is_settled(web, after=epoch + 2))
    assert dial(web, far) == {"proxy"}

    annotate(web, intercept="disabled")
    agent.wait(lambda: agent.pod(web)["state"] == "skipped")
    assert dial(web, far) == {"direct"}
    assert agent.pod(web)["detail"].startswith("disabled: ")


def test_a_deleted_pod_is_forgotten(agent: NodesAgent, pods: Pods) -> None:
    web = run_web(pods, intercept="enabled")
    agent.wait(lambda: agent.is_settled(web))
    web.delete()
    agent.wait(lambda: not agent.pod(web))


def test_rules_outlive_the_agent_and_the_next_one_goes_on(agent: NodesAgent, pods: Pods, far: Pod) -> None:
    web = run_web(pods, intercept="enabled")
    agent.wait(lambda: agent.is_settled(web))
    epoch = agent.pod(web)["epoch"]
    agent.stop(signal.SIGKILL)
    assert dial(web, far) == {"proxy"}
    agent.start()
    agent.wait(lambda: agent.is_settled(web))
    assert agent.pod(web)["epoch"] == epoch


def test_a_pod_that_was_opted_out_while_the_agent_was_away_is_freed(agent: NodesAgent, pods: Pods, far: Pod) -> None:
    web = run_web(pods, intercept="enabled")
    agent.wait(lambda: agent.is_settled(web))
    agent.stop(signal.SIGKILL)
    annotate(web, intercept=None)
    agent.start()
    agent.wait(lambda: agent.pod(web).get("state") == "skipped")
    assert dial(web, far) == {"direct"}


def test_a_refused_annotation_becomes_an_event_of_its_pod(agent: NodesAgent, pods: Pods) -> None:
    web = run_web(pods, intercept="enabled", excludeOutboundPorts="99999")
    agent.wait(lambda: agent.pod(web).get("rejected"))
    events = f"/apis/events.k8s.io/v1/namespaces/{pods.namespace}/events"

    def refusals() -> list[str]:
        found = pods.cluster.api.get(events)["items"]
        return [event["note"] for event in found if event.get("reason") == "AnnotationRefused"]

    agent.wait(refusals)
    assert "99999" in refusals()[0]


def test_a_pod_of_the_hosts_network_is_never_opened(agent: NodesAgent, pods: Pods) -> None:
    annotations = {INTERCEPT: "enabled"}
    web = pods.run("web", annotations=annotations, hostNetwork=True)
    agent.wait(lambda: agent.pod(web).get("state") == "skipped")
    assert "host" in agent.pod(web)["detail"]


def test_the_age_of_the_watch_is_a_metric(agent: NodesAgent) -> None:
    assert "nodeagent_watch_age_seconds" in agent.get("/metrics", 9640)
