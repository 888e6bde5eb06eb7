"""No gap: on a real node, a pod's rules stand before its first packet.

The three larger tests start 200 pods together; ``NODEAGENT_STARTS=N`` starts N in each, ``NODEAGENT_KILLS=N`` kills N
times.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster import Cluster, Object
from tests.cluster.agent import NodesAgent
from tests.cluster.components import STATIC_PODS
from tests.cluster.pods import Pods
from tests.cluster.starts import CHECKOUT, PORT, Start, Starts
from tests.cluster.surroundings import NODE_V4
from tests.cluster_tests.test_agent import ANSWERS, PROXY_PORT

pytestmark = pytest.mark.cluster

STARTS = os.environ.get("NODEAGENT_STARTS")
KILLS = int(os.environ.get("NODEAGENT_KILLS", "6"))
WAVE = int(os.environ.get("NODEAGENT_WAVE", "10"))
CONFIGURATION = """\
kubernetes: {startJitterSeconds: 0}
http: {metrics: "127.0.0.1:9640"}
"""
INTERCEPT = {"nodeagent.io/intercept": "enabled"}

Run = Callable[..., NodesAgent]


@pytest.fixture
def run(node: Cluster, tmp_path: Path) -> Iterator[Run]:
    """Return what runs an agent, with the options given."""
    with ExitStack() as agents:

        def start(*options: str) -> NodesAgent:
            return agents.enter_context(NodesAgent(node, tmp_path / "agent.log", CONFIGURATION, *options))

        yield start


@pytest.fixture
def starts(node: Cluster) -> Iterator[Starts]:
    with Starts(node, INTERCEPT) as starts:
        yield starts


def waves(starts: Starts, pods: Pods, count: int) -> Iterator[list[Start]]:
    """Start *count* pods in waves, within the kubelet's limit; yield how each went, while its pods run."""
    total = int(STARTS or count)
    for first in range(0, total, WAVE):
        names = [f"start-{number}" for number in range(first, min(first + WAVE, total))]
        starts.begin(pods, names)
        yield starts.wait(names)
        starts.end(pods, names)


def test_with_nri_no_packet_of_any_start_goes_direct(run: Run, starts: Starts, pods: Pods) -> None:
    agent = run()
    agent.wait(lambda: agent.metrics()["nodeagent_runtime_connected"] == 1)
    for wave in waves(starts, pods, 120):
        assert {start.name: start.accepted for start in wave if start.accepted} == {}
    assert starts.unproxied()[0] == {}
    found = agent.metrics()
    assert found["nodeagent_late_pods_total"] == 0
    assert found['nodeagent_runtime_answers_total{result="late"}'] == 0
    assert found['nodeagent_runtime_answers_total{result="failed"}'] == 0
    answers = [event["milliseconds"] for event in agent.events("answered") if event.get("call") == "RunPodSandbox"]
    print(f"{len(answers)} answers, p50 {quantile(answers, 0.5):.1f} ms, p99 {quantile(answers, 0.99):.1f} ms")


SOURCES = {
    "cgroups and namespaces that appear": ("--nri", "off"),
    "nothing but the API server's word of addresses": ("--nri", "off", "--netns-dir", "/nowhere"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_without_nri_each_leaked_byte_is_in_the_ledger(run: Run, starts: Starts, pods: Pods, source: str) -> None:
    agent = run(*SOURCES[source])
    gaps: list[float] = []
    for wave in waves(starts, pods, 40):
        connections, sizes = starts.unproxied()
        gaps += [start.gap if start.accepted else 0.0 for start in wave]
        leaked = {start.name: (connections[start.name], sizes[start.name]) for start in wave if start.accepted}
        assert leaked == {start.name: (start.accepted, start.sent) for start in wave if start.accepted}
        agent.wait(lambda leaked=leaked: ledger(agent, pods, "before_rules") == leaked)  # type: ignore[misc]
    print(f"{source}: {len(gaps)} starts, gap p50 {quantile(gaps, 0.5):.4f} s, p99 {quantile(gaps, 0.99):.4f} s")
    if "/nowhere" in SOURCES[source]:
        assert starts.unproxied()[0], "nothing leaked: then this has shown nothing"


def ledger(agent: NodesAgent, pods: Pods, reason: str) -> dict[str, tuple[int, int]]:
    """Return connections and payload that went to the recorder, by pod."""
    found: dict[str, tuple[int, int]] = {}
    for flow in agent.flows(namespace=pods.namespace, reason=reason, address=NODE_V4):
        before = found.get(flow["pod"], (0, 0))
        found[flow["pod"]] = before[0] + flow["connections"], before[1] + flow["payload"]
    return found


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def test_killed_under_churn_no_pod_is_lost_and_each_late_one_is_told(
    run: Run, starts: Starts, pods: Pods, node: Cluster
) -> None:
    agent = run()
    chance = random.Random(5)  # a test's choice
    uids: dict[str, str] = {}
    for number in range(KILLS):
        names = [f"kill-{number}-{n}" for n in range(10)]
        starts.begin(pods, names)
        time.sleep(chance.uniform(0, 1.5))
        agent.stop(signal.SIGTERM if number % 3 == 2 else signal.SIGKILL)  # now and then as an upgrade ends it
        time.sleep(chance.uniform(0, 1.0))
        agent.start()
        starts.wait(names)  # whoever was late is refused in the end: nobody is lost
        for name in names:
            uids[name] = node.api.get(f"/api/v1/namespaces/{pods.namespace}/pods/{name}")["metadata"]["uid"]
        agent.wait(lambda: {event["uid"] for event in agent.events("late pod")} >= leaked(starts, uids))
        starts.end(pods, names)
    late = {event["uid"] for event in agent.events("late pod")}
    print(f"{KILLS} kills, {len(uids)} pods, {len(late)} late, {len(leaked(starts, uids))} of them dialled meanwhile")


def leaked(starts: Starts, uids: dict[str, str]) -> set[str]:
    """Return the UIDs of the pods that reached the recorder."""
    return {uids[name] for name in starts.unproxied()[0] if name in uids}


def test_while_the_api_server_is_away_pods_are_intercepted_all_the_same(
    run: Run, starts: Starts, pods: Pods, node: Cluster
) -> None:
    agent = run()
    starts.begin(pods, ["before"])
    starts.wait(["before"])
    path = f"/api/v1/namespaces/{pods.namespace}/pods/before"
    uid = node.api.get(path)["metadata"]["uid"]
    sandbox = sandbox_process(node, uid)
    node.stop("kube-apiserver")
    try:
        starts.forget("before")
        node.run(["kill", "-KILL", sandbox])  # its sandbox: the kubelet makes it anew, and starts its container again
        assert [start.accepted for start in starts.wait(["before"])] == [0]
        agent.stop(signal.SIGKILL)
        agent.start()
        agent.wait(lambda: agent.metrics()["nodeagent_runtime_connected"] == 1)
        static = starts.body("static")
        node.run(["sh", "-c", f"cat > {STATIC_PODS}/static.json"], json.dumps(static))
        assert [start.accepted for start in starts.wait(["static"])] == [0]
        assert starts.unproxied()[0] == {}
    finally:
        node.begin("kube-apiserver")
    names = {"before", f"static-{node.node_name}"}
    agent.wait(lambda: {pod["pod"] for pod in agent.pods() if pod["source"] == "cluster"} >= names, 120)
    assert {pod["in_sync"] for pod in agent.pods() if pod["pod"] in names} == {True}
    assert not [event for event in agent.events("cleared") if event["pod"].rpartition("/")[2] in names]
    node.run(["rm", f"{STATIC_PODS}/static.json"])
    agent.wait(lambda: not any(pod["pod"].startswith("static") for pod in agent.pods()))
    assert not agent.events("late pod")


DIALS = """
import socket, sys
def dial():
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), 10).close()
    except ConnectionRefusedError:
        return "refused"
    return "accepted"
"""
AT_ITS_END = f"""{DIALS}
import os, signal
def end(*_):
    with open(sys.argv[3] + ".new", "w") as file:
        file.write(dial())
    os.rename(sys.argv[3] + ".new", sys.argv[3])
    sys.exit()
signal.signal(signal.SIGTERM, end)
while True:
    signal.pause()
"""


def dialling(script: str, *more: str) -> list[str]:
    return ["python3", "-c", script, NODE_V4, str(PORT), *more]


def test_before_the_sidecar_is_up_connections_are_refused_not_leaked(
    run: Run, starts: Starts, pods: Pods, node: Cluster
) -> None:
    """An init container, and an app whose sidecar never listens: the pod is ready only if both were refused."""
    agent = run()
    refused = dialling(f"{DIALS}\nsys.exit(dial() != 'refused')")
    first = {"name": "first", "image": node.image, "command": refused}
    probe = {"readinessProbe": {"exec": {"command": refused}, "periodSeconds": 1, "timeoutSeconds": 20}}
    pod = pods.run("web", container=probe, annotations=INTERCEPT, initContainers=[first])
    assert agent.pod(pod)["in_sync"]
    assert starts.unproxied()[0] == {}


def test_a_terminating_pod_is_intercepted_to_its_end(run: Run, starts: Starts, pods: Pods, node: Cluster) -> None:
    agent = run()
    shared, told = starts.shared("end")
    pod = pods.run(
        "web",
        *dialling(AT_ITS_END, told),
        container={"volumeMounts": shared["volumeMounts"]},
        annotations=INTERCEPT,
        volumes=shared["volumes"],
        terminationGracePeriodSeconds=30,
    )
    agent.wait(lambda: agent.is_settled(pod))
    node.api.delete(pod.path, grace=30)
    assert starts.said("end") == "refused"
    agent.wait(lambda: not agent.pod(pod))
    assert starts.unproxied()[0] == {}


REQUIRES = {"required-plugins.noderesource.dev": '["nodeagent"]'}
"""As docs/starting.md says; the test cluster's containerd has the validator that reads it."""


def test_a_pod_that_requires_the_agent_does_not_start_without_it(
    run: Run, starts: Starts, pods: Pods, node: Cluster
) -> None:
    starts.begin(pods, ["unready"], REQUIRES)
    path = f"/api/v1/namespaces/{pods.namespace}/pods/unready"
    pod = node.api.until(path, lambda pod: why_waiting(pod) == "CreateContainerError")
    assert r"required plugin \"nodeagent\" not present" in json.dumps(pod)
    agent = run()
    agent.wait(lambda: agent.metrics()["nodeagent_runtime_connected"] == 1)
    assert [start.accepted for start in starts.wait(["unready"])] == [0]  # the kubelet tries again by itself
    assert starts.unproxied()[0] == {}


def why_waiting(pod: Object | None) -> str:
    """Return why a pod's container waits; empty if it does not."""
    statuses = pod["status"].get("containerStatuses", ()) if pod else ()
    return "".join(status["state"].get("waiting", {}).get("reason", "") for status in statuses)


def test_a_pod_that_asks_for_it_waits_until_its_rules_stand(
    node: Cluster, starts: Starts, pods: Pods, tmp_path: Path
) -> None:
    """Where nobody waits for the agent: `nodeagent wait`, as an init container."""
    wait = {
        "name": "wait",
        "image": node.image,
        "command": [str(CHECKOUT / ".venv/bin/python"), "-m", "nodeagent", "wait", "--timeout", "120"],
        "env": [
            {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
            {"name": "PYTHONPATH", "value": str(CHECKOUT)},
        ],
        "volumeMounts": [{"name": "checkout", "mountPath": str(CHECKOUT), "readOnly": True}],
    }
    open_to_pods = CONFIGURATION.replace("127.0.0.1", "0.0.0.0")
    options = SOURCES["nothing but the API server's word of addresses"]
    names = [f"waits-{number}" for number in range(4)]
    with NodesAgent(node, tmp_path / "agent.log", open_to_pods, *options):
        starts.begin(pods, names, init=[wait])
        assert {start.name: start.accepted for start in starts.wait(names) if start.accepted} == {}
    assert starts.unproxied()[0] == {}


SAYS_PROXY = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as sock:
    sys.exit(sock.recv(16) != b"proxy")
"""


def test_a_jobs_sidecar_serves_it_to_its_end(run: Run, starts: Starts, pods: Pods, node: Cluster) -> None:
    """A native sidecar; an init container after it and the job itself succeed only if it answers them."""
    agent = run()
    sidecar = {
        "name": "istio-proxy",
        "image": node.image,
        "restartPolicy": "Always",
        "command": ["python3", "-c", ANSWERS, str(PROXY_PORT), "proxy"],
        "startupProbe": {"tcpSocket": {"port": PROXY_PORT}, "periodSeconds": 1},
    }
    dials = {"image": node.image, "command": dialling(SAYS_PROXY)}
    body = {
        "metadata": {"name": "job"},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "initContainers": [sidecar, {"name": "first", **dials}],
            "containers": [{"name": "main", **dials}],
        },
    }
    path = f"/api/v1/namespaces/{pods.namespace}/pods"
    node.api.create(path, body)
    ended = node.api.until(f"{path}/job", lambda pod: pod and pod["status"]["phase"] in ("Succeeded", "Failed"))
    assert ended
    assert ended["status"]["phase"] == "Succeeded"
    assert starts.unproxied()[0] == {}
    agent.wait(lambda: {pod["state"] for pod in agent.pods() if pod["pod"] == "job"} == {"skipped"})
    [job] = [pod for pod in agent.pods() if pod["pod"] == "job"]
    assert job["detail"].startswith("terminated")


def sandbox_process(node: Cluster, uid: str) -> str:
    """Return the process of a pod's sandbox, as the node numbers it: the one that waits for nothing but its end."""
    found = node.run(["sh", "-c", f"grep -ls pod{uid} /proc/[0-9]*/cgroup | xargs -n1 dirname | sort -V"])
    for process in found.split():
        if node.run(["cat", f"{process}/comm"]).strip() == "pause":
            return process.rpartition("/")[2]
    raise AssertionError(found)
