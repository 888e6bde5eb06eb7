"""nodeagent as its users have it: installed with Helm, changed while it runs, and asked."""

import base64
import io
import json
import tarfile

import pytest

from tests.cluster import Cluster
from tests.cluster.pods import Pod, Pods, listening
from tests.cluster.product import NAMESPACE, Product
from tests.cluster_tests.test_agent import ANSWERS, PORT, PROXY_PORT, annotate, dial, run_web

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def far(pods: Pods) -> Pod:
    return pods.run("far", "python3", "-c", ANSWERS, str(PORT), "direct", container=listening(PORT))


def takes(product: Product, web: Pod, far: Pod, path: str) -> None:
    """Wait until the pod's connections take *path*, and then see them do so."""
    product.wait(lambda: dial(web, far) == {path}, lambda: product.exec("nodeagent", "status").stdout)


def test_every_edit_takes_effect_on_a_running_pod(product: Product, pods: Pods, far: Pod) -> None:
    """Annotations, labels, and the ConfigMap; what each says is seen in the connections themselves."""
    web = run_web(pods)
    assert dial(web, far) == {"direct"}
    product.node.api.patch(web.path, {"metadata": {"labels": {"nodeagent.io/intercept": "enabled"}}})
    takes(product, web, far, "proxy")
    annotate(web, excludeOutboundPorts=str(PORT))
    takes(product, web, far, "direct")
    annotate(web, excludeOutboundPorts=None)
    takes(product, web, far, "proxy")
    product.configure(f'defaults: {{excludeOutboundPorts: "{PORT}"}}')
    takes(product, web, far, "direct")
    product.configure("mode: observe")
    product.node.api.patch(web.path, {"metadata": {"labels": {"nodeagent.io/intercept": None}}})
    takes(product, web, far, "direct")


def test_a_bad_edit_changes_nothing_and_is_told(product: Product, pods: Pods, far: Pod) -> None:
    web = run_web(pods, intercept="enabled")
    takes(product, web, far, "proxy")
    annotate(web, excludeOutboundPorts=f"{PORT},99999")
    product.wait(lambda: refusals(pods))
    assert "99999" in refusals(pods)[0]
    assert dial(web, far) == {"proxy"}

    product.configure("mode: sometimes")
    product.wait(lambda: "configuration" in troubles(product))
    assert dial(web, far) == {"proxy"}
    product.configure("")
    product.wait(lambda: "configuration" not in troubles(product))


def refusals(pods: Pods) -> list[str]:
    found = pods.cluster.api.get(f"/apis/events.k8s.io/v1/namespaces/{pods.namespace}/events")["items"]
    return [event["note"] for event in found if event.get("reason") == "AnnotationRefused"]


def troubles(product: Product) -> set[str]:
    (node,) = json.loads(product.plugin("status", "-o", "json").stdout)["nodes"]
    return {trouble["condition"] for trouble in node["troubles"]}


def test_the_kill_switch_stops_interception_everywhere_until_it_is_taken_back(
    product: Product, pods: Pods, far: Pod
) -> None:
    web = run_web(pods, intercept="enabled")
    takes(product, web, far, "proxy")
    product.configure("suspend: true")
    takes(product, web, far, "direct")
    product.configure("suspend: false")
    takes(product, web, far, "proxy")


def test_a_restart_of_the_agent_leaves_rules_and_counts(product: Product, pods: Pods, far: Pod) -> None:
    web = run_web(pods, intercept="enabled")
    takes(product, web, far, "proxy")
    before = flows(product)
    product.node.kubectl("rollout", "restart", "daemonset/nodeagent", f"--namespace={NAMESPACE}")
    assert dial(web, far) == {"proxy"}
    product.wait_for_rollout()
    assert dial(web, far) == {"proxy"}
    product.wait(lambda: flows(product) >= before + 2 * len(far.addresses))


def flows(product: Product) -> int:
    """Return how many connections were intercepted so far."""
    found = json.loads(product.plugin("flows", "--verdict", "intercepted", "-o", "json").stdout)
    return sum(flow["connections"] for flow in found)


def test_the_same_is_told_inside_the_pod_and_by_the_plugin(product: Product, pods: Pods, far: Pod) -> None:
    web = run_web(pods, intercept="enabled")
    takes(product, web, far, "proxy")
    name, to = f"{pods.namespace}/web", f"{far.addresses[0]}:{PORT}"

    inside = json.loads(product.exec("nodeagent", "status", "-o", "json").stdout)
    outside = json.loads(product.plugin("status", "-o", "json").stdout)
    assert [node["reachable"] for node in outside["nodes"]] == [True]
    assert {(pod["pod"], pod["state"]) for pod in inside["pods"]} == {(p["pod"], p["state"]) for p in outside["pods"]}
    assert {pod["node"] for pod in outside["pods"]} == {product.node.node_name}

    for ask in (lambda *words: product.exec("nodeagent", *words), product.plugin):
        explained = json.loads(ask("explain", "--pod", name, "--to", to, "-o", "json").stdout)
        assert (explained["verdict"], explained["port"]) == ("intercepted", PROXY_PORT)
        assert explained["observed"]
        found = json.loads(ask("flows", "--namespace", pods.namespace, "-o", "json").stdout)
        assert {(flow["pod"], flow["verdict"]) for flow in found} >= {("web", "intercepted")}

    table = product.plugin("top", "--once")
    assert table.returncode == 0, table.stderr
    assert f"{product.node.node_name}  {name}" in table.stdout
    assert product.plugin("flows", "-o", "csv").stdout.startswith("node,namespace,pod,")


UNANSWERED = {
    "another namespace": (("status", "--agent-namespace=default"), 2, "no agent in namespace default"),
    "a node that is not there": (("status", "--node=none"), 2, "no agent of node none"),
    "a pod that is not there": (("explain", "--pod=default/none", "--to=192.0.2.1:80"), 2, "NotFound"),
    "a port where nobody listens": (("status", "--agent-port=9"), 5, "node node-1: "),
    "a context that is not there": (("status", "--context=none"), 5, "does not exist"),
}


def test_what_cannot_be_answered_is_told_in_one_line(product: Product) -> None:
    for what, (words, code, says) in UNANSWERED.items():
        done = product.plugin(*words)
        assert (done.returncode, says in done.stderr) == (code, True), f"{what}: {done}"
        assert "Traceback" not in done.stderr, what


def test_support_holds_what_is_needed_and_no_token(product: Product, pods: Pods) -> None:
    web = run_web(pods, intercept="enabled")
    product.wait(lambda: web.name in product.exec("nodeagent", "status").stdout)
    token = product.exec("cat", "/var/run/secrets/kubernetes.io/serviceaccount/token").stdout
    assert token.count(".") == 2
    done = product.plugin("support", "-f", "/run/support.tar.gz", "-o", "json")
    assert done.returncode == 0, done.stderr
    found = read_archive(product.node)
    assert {name for name in found if name.startswith("nodes/")} >= {
        f"nodes/node-1/{name}"
        for name in ("agent/status.json", "agent/metrics.txt", "doctor.json", "logs/agent.txt", "logs/programmer.txt")
    }
    assert json.loads(found["cluster/daemonset.json"])["items"][0]["metadata"]["name"] == "nodeagent"
    findings = {finding["what"]: finding for finding in json.loads(found["nodes/node-1/doctor.json"])}
    assert findings["capabilities"]["ok"], findings
    assert not [name for name, data in found.items() if token.encode() in data]


def read_archive(node: Cluster) -> dict[str, bytes]:
    text = node.run(["base64", "/run/support.tar.gz"])
    node.run(["rm", "/run/support.tar.gz"])
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(text))) as archive:
        read = {member.name.partition("/")[2]: archive.extractfile(member) for member in archive.getmembers()}
        return {name: data.read() for name, data in read.items() if data}
