"""The agent on a real node: pods of the API server, found by their processes, proven, and programmed."""

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import Cluster, ClusterError, Object
from tests.cluster.agent import CONFIGURATION, NodesAgent
from tests.cluster.components import STATIC_PODS
from tests.cluster.foreign import ForeignCluster
from tests.cluster.pods import Pod, Pods, listening
from tests.cluster.surroundings import API_SERVICE, NODE_V4, SERVICE_RANGES
from tests.lab.strangers import ISTIO

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


@pytest.fixture(scope="module")
def shared(cluster: Cluster | ForeignCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodesAgent]:
    """Run one agent for these tests: to start one takes as long as most of them."""
    if isinstance(cluster, ForeignCluster):
        pytest.skip("needs the node itself, which a kubeconfig does not give")
    with NodesAgent(cluster, tmp_path_factory.mktemp("agent") / "agent.log") as running:
        yield running


@pytest.fixture
def agent(shared: NodesAgent) -> Iterator[NodesAgent]:
    """Return it, running; its configuration is as before afterwards."""
    yield shared
    shared.configure(CONFIGURATION)
    if not shared.is_running:
        shared.start()


@pytest.fixture(scope="module")
def far(cluster: Cluster | ForeignCluster) -> Iterator[Pod]:
    """Return a pod, not ours, that says "direct" to whoever reaches it."""
    with Pods(cluster) as pods:
        yield pods.run("far", "python3", "-c", ANSWERS, str(PORT), "direct", container=listening(PORT))


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
    skipped = agent.metrics()
    assert skipped['nodeagent_skipped_pods{why="disabled"}'] == 1
    assert skipped['nodeagent_skipped_pods{why="not_opted_in"}'] >= 1

    web.delete()
    agent.wait(lambda: not agent.pod(web))


def test_rules_outlive_the_agent_and_the_next_one_goes_on(agent: NodesAgent, pods: Pods, far: Pod) -> None:
    """And frees a pod that was opted out meanwhile."""
    web = run_web(pods, intercept="enabled")
    agent.wait(lambda: agent.is_settled(web))
    epoch = agent.pod(web)["epoch"]
    agent.stop(signal.SIGKILL)
    assert dial(web, far) == {"proxy"}
    agent.start()
    agent.wait(lambda: agent.is_settled(web))
    assert agent.pod(web)["epoch"] == epoch

    agent.stop(signal.SIGKILL)
    annotate(web, intercept=None)
    agent.start()
    agent.wait(lambda: agent.pod(web).get("state") == "skipped")
    assert dial(web, far) == {"direct"}


# ── whose pods, and how far ───────────────────────────────────────────────────────────────────────────────────────────


PROXY = {"name": "istio-proxy", "securityContext": {"runAsUser": 2102, "runAsGroup": 2103}}


def test_a_pod_is_opted_in_by_each_way_there_is(agent: NodesAgent, pods: Pods, node: Cluster) -> None:
    """And who its proxy is, its sidecar's container says, a native one among the init containers too."""
    sleeps = {"image": node.image, "command": ["sleep", "infinity"]}
    main, proxy = {"name": "main", **sleeps}, PROXY | sleeps
    native = {**proxy, "restartPolicy": "Always"}
    ways: dict[str, tuple[Object, Object]] = {
        "annotation": ({"annotations": {INTERCEPT: "enabled"}}, {"containers": [main]}),
        "label": ({"labels": {INTERCEPT: "enabled"}}, {"containers": [main]}),
        "sidecar": ({}, {"containers": [main, proxy]}),
        "native": ({}, {"containers": [main], "initContainers": [native]}),
        "nothing": ({}, {"containers": [main]}),
        "alone": ({}, {"containers": [proxy]}),
    }
    for name, (metadata, spec) in ways.items():
        body = {"metadata": {"name": name, **metadata}, "spec": {**spec, "terminationGracePeriodSeconds": 0}}
        node.api.create(f"/api/v1/namespaces/{pods.namespace}/pods", body)
    found = {name: pods.ready(name) for name in ways}
    agent.configure(CONFIGURATION.replace("mode: observe", "mode: enforce"))
    for name in ("annotation", "label", "sidecar", "native"):
        agent.wait(lambda name=name: agent.is_settled(found[name]))  # type: ignore[misc]
    for name in ("sidecar", "native"):
        policy = json.loads(agent.get(f"/api/v1/pods/{pods.namespace}/{name}"))["policy"]
        said = {field["field"]: [(value["value"], value["source"]) for value in field["values"]] for field in policy}
        assert said["proxy_uids"] == [("2102", "container istio-proxy")]
        assert said["proxy_gids"] == [("2103", "container istio-proxy")]
    for name, why in {"nothing": "opts it in", "alone": "a gateway, nobody's sidecar"}.items():
        assert agent.pod(found[name])["state"] == "skipped"
        assert why in agent.pod(found[name])["detail"]
    agent.configure(f"{CONFIGURATION}namespaces: {{{pods.namespace}: {{optIn: true}}}}\n")
    agent.wait(lambda: agent.pod(found["nothing"])["state"] == "observed")


def test_a_team_watches_first_moves_one_namespace_and_goes_back_by_one_edit(
    agent: NodesAgent, pods: Pods, far: Pod
) -> None:
    web = run_web(pods)
    pods.cluster.api.patch(web.path, {"metadata": {"labels": {"mesh": "on"}}})
    watched = f"{CONFIGURATION}optIn: {{labels: {{mesh: ['on']}}}}\n"
    agent.configure(watched)
    agent.wait(lambda: agent.pod(web).get("state") == "observed")
    assert dial(web, far) == {"direct"}
    agent.configure(f"{watched}namespaces: {{{pods.namespace}: {{mode: enforce}}}}\n")
    agent.wait(lambda: agent.is_settled(web))
    assert dial(web, far) == {"proxy"}
    annotate(web, intercept="observe")
    agent.wait(lambda: agent.pod(web)["state"] == "observed")
    assert dial(web, far) == {"direct"}
    annotate(web, intercept=None)
    agent.wait(lambda: agent.is_settled(web))
    agent.configure(watched)
    agent.wait(lambda: agent.pod(web)["state"] == "observed")
    assert dial(web, far) == {"direct"}


@pytest.mark.fault(17)
def test_a_pod_of_the_hosts_network_is_never_opened(agent: NodesAgent, pods: Pods) -> None:
    web = pods.run("web", annotations={INTERCEPT: "enabled"}, hostNetwork=True)
    agent.wait(lambda: agent.pod(web).get("state") == "skipped")
    assert "host" in agent.pod(web)["detail"]
    assert agent.metrics()['nodeagent_skipped_pods{why="host_network"}'] == 1


@pytest.mark.fault(18)
def test_a_job_that_has_completed_is_left_alone_and_counted_as_that(agent: NodesAgent, pods: Pods) -> None:
    body = {
        "metadata": {"name": "job", "annotations": {INTERCEPT: "enabled"}},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "main", "image": pods.cluster.image, "command": ["true"]}],
        },
    }
    path = f"/api/v1/namespaces/{pods.namespace}/pods"
    pods.cluster.api.create(path, body)
    done = pods.cluster.api.until(f"{path}/job", lambda pod: pod and pod["status"]["phase"] == "Succeeded")
    job = Pod(pods.cluster, f"{path}/job", done or {})
    agent.wait(lambda: agent.pod(job).get("state") == "skipped")
    assert agent.pod(job)["detail"] == "terminated: nothing runs in it any more"
    assert agent.metrics()['nodeagent_skipped_pods{why="terminated"}'] == 1


def test_a_pod_without_a_listening_sidecar_fails_closed_and_is_told(agent: NodesAgent, pods: Pods, far: Pod) -> None:
    agent.configure(f"{CONFIGURATION}resync: {{seconds: 1}}\n")
    web = pods.run("web", annotations={INTERCEPT: "enabled"})
    agent.wait(lambda: agent.is_settled(web))
    agent.wait(lambda: "no sidecar listens at port 15001: connections are refused" in agent.pod(web)["detail"])
    agent.wait(lambda: agent.metrics()["nodeagent_unanswered_pods"] == 1)
    refused = web.exec("sh", "-c", f"nc {far.addresses[0]} {PORT} </dev/null; echo $?")
    assert "direct" not in refused
    assert refused.strip() != "0"


def test_a_pod_that_another_tool_redirects_is_observed_and_never_programmed(
    agent: NodesAgent, pods: Pods, far: Pod, node: Cluster
) -> None:
    """An init container with Istio's rules: what it intercepts is told, and what an annotation excludes by its name.

    It has none of the names that a mesh gives its own, so that the rules are all there is to know it by.
    """
    excluded = f"-A ISTIO_OUTPUT -d {far.addresses[0]}/32 -j RETURN\n-A ISTIO_OUTPUT -j"
    rules = ISTIO.format(localhost="127.0.0.1/32").replace("-A ISTIO_OUTPUT -j", excluded, 1)
    init = {
        "name": "redirects",
        "image": node.image,
        "command": ["chroot", "/node", "sh", "-c", f"iptables-nft-restore --noflush <<'END'\n{rules}END"],
        "securityContext": {"capabilities": {"add": ["NET_ADMIN", "NET_RAW", "SYS_CHROOT"]}},
        "volumeMounts": [{"name": "node", "mountPath": "/node", "readOnly": True}],
    }
    pod = pods.run(
        "web",
        *("python3", "-c", ANSWERS, str(PROXY_PORT), "proxy"),
        container=listening(PROXY_PORT),
        annotations={INTERCEPT: "observe", "traffic.sidecar.istio.io/excludeOutboundIPRanges": far.addresses[0]},
        initContainers=[init],
        volumes=[{"name": "node", "hostPath": {"path": "/"}}],
    )
    agent.wait(lambda: agent.pod(pod).get("counted_by"))
    for intercept in ("observe", "enabled"):
        annotate(pod, intercept=intercept)
        agent.wait(lambda intercept=intercept: agent.pod(pod)["mode"] == MODES[intercept])  # type: ignore[misc]
        agent.wait(lambda: agent.pod(pod)["state"] == "observed" and "Istio" in agent.pod(pod)["detail"])
        assert pod.exec("python3", "-c", DIALS, far.addresses[0], str(PORT)) == "direct"
        assert pod.exec("python3", "-c", DIALS, NODE_V4, "1234") == "proxy"
    agent.wait(lambda: len(agent.flows(pod="web", namespace=pods.namespace)) > 1)
    seen = {flow["address"]: (flow["verdict"], flow["reason"]) for flow in agent.flows(namespace=pods.namespace)}
    assert seen == {far.addresses[0]: ("bypassed", "excluded_cidr"), NODE_V4: ("intercepted", "included")}
    assert "table inet nodeagent" not in inside(node, pod, "nft", "list", "ruleset")


MODES = {"observe": "observe", "enabled": "enforce"}


def inside(node: Cluster, pod: Pod, *command: str) -> str:
    """Run *command* of the node's in the pod's network namespace."""
    script = 'find /sys/fs/cgroup -path "*$1*" -name cgroup.procs -exec cat {} +'
    (process, *_) = node.run(["sh", "-c", script, "sh", pod.uid]).split()
    return node.run(["nsenter", f"--net=/proc/{process}/ns/net", *command])


# ── what is wrong is told ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault(32)
def test_a_bad_annotation_keeps_the_running_rules_and_is_told_once(agent: NodesAgent, pods: Pods, far: Pod) -> None:
    """In one Event, which says which entry, and what is allowed; a misspelt key is said, too."""
    web = run_web(pods, intercept="enabled")
    agent.wait(lambda: agent.is_settled(web))
    annotate(web, excludeOutboundPorts="99999", excludeOutboundPort="80")
    agent.wait(lambda: agent.pod(web).get("rejected"))
    assert dial(web, far) == {"proxy"}
    agent.wait(lambda: events(pods).keys() == {"AnnotationRefused", "AnnotationUnknown"})
    (refused,), (unknown,) = events(pods)["AnnotationRefused"], events(pods)["AnnotationUnknown"]
    assert "99999" in refused["note"]
    assert "0 to 65535" in refused["note"]
    assert "nodeagent.io/excludeOutboundPort" in unknown["note"]
    for number in range(20):  # edited again and again: the Events stay two
        annotate(web, excludeOutboundPorts=f"{number},99999")
    annotate(web, excludeOutboundPorts="19,88888")
    agent.wait(lambda: "88888" in str(agent.pod(web)["rejected"]))
    assert {name: len(found) for name, found in events(pods).items()} == {
        "AnnotationRefused": 1,
        "AnnotationUnknown": 1,
    }
    assert dial(web, far) == {"proxy"}


def events(pods: Pods) -> dict[str, list[dict[str, Any]]]:
    """Return our Events about pods of the namespace, by reason."""
    found: dict[str, list[dict[str, Any]]] = {}
    for event in pods.cluster.api.get(f"/apis/events.k8s.io/v1/namespaces/{pods.namespace}/events")["items"]:
        if event.get("reportingController") == "nodeagent.io/agent":
            found.setdefault(event["reason"], []).append(event)
    return found


def test_a_destination_is_called_by_its_service(agent: NodesAgent, pods: Pods) -> None:
    ranges = ", ".join(f"'{one}'" for one in SERVICE_RANGES)
    agent.configure(CONFIGURATION.replace("startJitterSeconds: 0", f"startJitterSeconds: 0, serviceRanges: [{ranges}]"))
    web = pods.run("web", annotations={INTERCEPT: "observe"})
    agent.wait(lambda: agent.pod(web).get("counted_by"))
    web.exec("python3", "-c", f"import socket; socket.create_connection(('{API_SERVICE}', 443), 10).close()")
    wanted = {"kubernetes.default"}
    agent.wait(lambda: {flow["destination"] for flow in agent.flows(pod="web", namespace=pods.namespace)} == wanted)


# ── pods of other kinds ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault(22)
def test_a_pod_with_a_user_namespace_of_its_own_is_programmed(agent: NodesAgent, pods: Pods, far: Pod) -> None:
    command = ("python3", "-c", ANSWERS, str(PROXY_PORT), "proxy")
    given = {INTERCEPT: "enabled"}
    web = pods.run("web", *command, container=listening(PROXY_PORT), annotations=given, hostUsers=False)
    assert web.exec("cat", "/proc/self/uid_map").split() != ["0", "0", "4294967295"]
    agent.wait(lambda: agent.is_settled(web))
    assert dial(web, far) == {"proxy"}


@pytest.mark.fault(20)
def test_a_static_pod_is_programmed(agent: NodesAgent, node: Cluster, far: Pod) -> None:
    """Its cgroup is named by a hash, not by the UID that the API server has."""
    command = ["python3", "-c", ANSWERS, str(PROXY_PORT), "proxy"]
    containers = [{"name": "main", "image": node.image, "command": command, **listening(PROXY_PORT)}]
    metadata = {"name": "fixed", "annotations": {INTERCEPT: "enabled"}}
    spec = {"containers": containers, "terminationGracePeriodSeconds": 0}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    file, path = f"{STATIC_PODS}/fixed.json", f"/api/v1/namespaces/default/pods/fixed-{node.node_name}"
    node.run(["sh", "-c", f"cat > {file}.new && mv {file}.new {file}"], json.dumps(manifest))
    try:
        found = node.api.until(path, lambda pod: pod and pod["status"].get("podIPs"))
        mirror = Pod(node, path, found or {})
        agent.wait(lambda: agent.is_settled(mirror))
        assert dial(mirror, far) == {"proxy"}
    finally:
        node.run(["rm", file])
    agent.wait(lambda: not agent.pod(mirror))


# ── under traffic ─────────────────────────────────────────────────────────────────────────────────────────────────────


LOAD = """
import collections, json, os, socket, sys, time
answers, attempts, old = collections.Counter(), 0, None
def say():
    with open("/new", "w") as file:
        json.dump({"answers": answers, "attempts": attempts}, file)
    os.rename("/new", "/said")
def dial(address):
    global attempts
    attempts += 1
    sock = socket.create_connection((address, int(sys.argv[2])), 10)
    return sock, sock.recv(16).decode()
while not os.path.exists("/stop"):
    for address in sys.argv[1].split(","):
        try:
            sock, said = dial(address)
            sock.close()
            answers[said] += 1
        except OSError as error:
            if old:  # before, the sidecar may not be up
                answers[repr(error)] += 1
    try:
        if old:
            old.sendall(b"x")
        elif answers["proxy"]:
            old, _ = dial(address)
    except OSError as error:
        answers["the old connection: " + repr(error)] += 1
    say()
    time.sleep(0.02)
say()
os.rename("/said", "/stopped")
time.sleep(10**6)
"""
ECHO = """
import socket, sys, threading
def serve(peer):
    with peer:
        peer.sendall(sys.argv[2].encode())
        while peer.recv(16):
            pass
with socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


@pytest.mark.fault(13)
def test_runtime_kubelet_and_api_server_restart_under_traffic(agent: NodesAgent, pods: Pods, node: Cluster) -> None:
    """And the agent: no connection is reset or goes direct, no rule is lost, and each connection is counted once."""
    far = pods.run("far", "python3", "-c", ECHO, str(PORT), "direct", container=listening(PORT))
    load = {
        "name": "load",
        "image": node.image,
        "command": ["python3", "-c", LOAD, ",".join(far.addresses), str(PORT)],
    }
    sidecar = {"name": "sidecar", "image": node.image, **listening(PROXY_PORT)}
    sidecar["command"] = ["python3", "-c", ECHO, str(PROXY_PORT), "proxy"]
    web = pods.run("web", containers=[load, sidecar], annotations={INTERCEPT: "enabled"})
    agent.wait(lambda: agent.is_settled(web))
    epoch, written = agent.pod(web)["epoch"], len(agent.events("programmed"))
    for component in ("containerd", "kubelet", "kube-apiserver"):
        before = attempts(web)
        node.restart(component)
        agent.wait(lambda before=before: attempts(web) > before)  # type: ignore[misc]
    agent.stop(signal.SIGKILL)
    agent.start()
    agent.wait(lambda: agent.is_settled(web))
    assert (agent.pod(web)["epoch"], len(agent.events("programmed"))) == (epoch, written)
    web.exec("touch", "/stop")
    agent.wait(lambda: web.exec("sh", "-c", "ls /stopped || true"))
    said = json.loads(web.exec("cat", "/stopped"))
    assert said["answers"].keys() == {"proxy"}
    assert said["answers"]["proxy"] > 100
    agent.wait(lambda: intercepted(agent, web) >= said["attempts"])
    assert intercepted(agent, web) == said["attempts"]


def attempts(web: Pod) -> int:
    """Return how often the load has dialled so far; 0 while a kubelet has only just begun."""
    try:
        return int(json.loads(web.exec("cat", "/said"))["attempts"])
    except ClusterError:
        return 0


def intercepted(agent: NodesAgent, web: Pod) -> int:
    namespace = web.object["metadata"]["namespace"]
    found = agent.flows(pod=web.name, namespace=namespace)
    assert {flow["verdict"] for flow in found} == {"intercepted"}, found
    return sum(flow["connections"] for flow in found)
