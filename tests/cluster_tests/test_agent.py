"""The agent on a real node: pods of the API server, found by their processes, proven, and programmed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.cluster import Cluster
from tests.cluster.pods import Pod, Pods, listening

pytestmark = pytest.mark.cluster

PATIENCE = 60.0
PORT, PROXY_PORT = 8080, 15001
FOLDER = Path("/run/agent")
"""On the node, whose /run is its own."""
CONFIGURATION = """\
kubernetes: {startJitterSeconds: 0}
mode: observe
http: {metrics: "127.0.0.1:9640"}
"""
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
GETS = "import sys, urllib.request as u; sys.stdout.write(u.urlopen(sys.argv[1], timeout=10).read().decode())"


class NodesAgent:
    """`nodeagent run --kubernetes`, in all of the node's namespaces, at the product's own ports."""

    def __init__(self, node: Cluster, log: Path) -> None:
        self._node, self._log = node, log
        self._process: subprocess.Popen[bytes] | None = None
        self._said = ""

    def __enter__(self) -> Self:
        self._node.run(["mkdir", "-p", "-m", "700", str(FOLDER / "state"), str(FOLDER / "bpf")])
        self._node.run(["mount", "-t", "bpf", "bpf", str(FOLDER / "bpf")])
        self._node.run(["sh", "-c", f"cat > {FOLDER}/config.yaml"], CONFIGURATION)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)
        self._node.run(["sh", "-c", f"rm -r {FOLDER}/bpf/*; umount {FOLDER}/bpf; rm -r {FOLDER}"])

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        checkout = str(Path(__file__).resolve().parents[2])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._node.enter,
                    *(sys.executable, "-m", "nodeagent", "--log-level", "info", "run", "--kubernetes"),
                    *("--node", self._node.node_name, "--config", str(FOLDER / "config.yaml")),
                    *("--state-dir", str(FOLDER / "state"), "--bpffs", str(FOLDER / "bpf")),
                ],
                env={**self._node.environment, "PYTHONPATH": checkout},
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.wait(self._is_ready)

    def _is_ready(self) -> bool:
        found = self._node.attempt(_ask("/readyz", 9640))
        self._said = found.stdout + found.stderr
        return found.returncode == 0

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it."""
        if self._process and self._process.poll() is None:
            # nsenter waits for the agent, its child, and ends as that does.
            (child,) = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            os.kill(int(child), number)
            self._process.wait(PATIENCE)
        self._process = None

    def wait(self, holds: Callable[[], object]) -> None:
        """Wait until *holds*; what the agent says tells of no end."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert self._process
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._said + self._log.read_text()[-6000:]
            time.sleep(0.02)

    def get(self, path: str, port: int = 9641) -> str:
        """Return what it answers."""
        return self._node.run(_ask(path, port))

    def pod(self, pod: Pod) -> dict[str, Any]:
        """Return what it says of a pod; empty if it says nothing."""
        found = json.loads(self.get("/api/v1/pods"))["pods"]
        return next((entry for entry in found if entry["uid"] == pod.uid), {})

    def is_settled(self, pod: Pod, *, after: int = 0) -> bool:
        """Say whether the pod is in sync, in an epoch later than *after*."""
        said = self.pod(pod)
        return bool(said.get("in_sync") and said["epoch"] and said["epoch"] % 2 == 0 and said["epoch"] > after)


def _ask(path: str, port: int) -> list[str]:
    return [sys.executable, "-c", GETS, f"http://127.0.0.1:{port}{path}"]


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
