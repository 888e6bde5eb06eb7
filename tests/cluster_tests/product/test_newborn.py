"""A new node: registered with a taint, it takes pods once its agent is ready, by the lines of docs/starting.md."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster, Object
from tests.cluster.pods import Pods
from tests.cluster.product import NAMESPACE, Product
from tests.cluster.surroundings import STATE

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STARTING = Path(__file__).resolve().parents[3] / "docs" / "starting.md"
KUBELET = STATE / "kubelet.json"
TAINT = '"registerWithTaints": [{"key": "nodeagent.io/not-ready", "effect": "NoSchedule"}],'


@pytest.fixture
def born_tainted(product: Product) -> Iterator[Cluster]:
    """Let the node go, and come again as a new one, with the taint that docs/starting.md names."""
    node = product.node
    path = f"/api/v1/nodes/{node.node_name}"
    node.stop("kubelet")
    node.run(["sed", "--in-place=.before", f"1s|{{|{{ {TAINT}|", str(KUBELET)])
    try:
        node.api.delete(path)
        node.begin("kubelet")
        node.api.until(path, lambda found: found and taints(found) >= {"nodeagent.io/not-ready"})
        yield node
    finally:
        node.run(["mv", f"{KUBELET}.before", str(KUBELET)])


def taints(node: Object) -> set[str]:
    return {taint["key"] for taint in node["spec"].get("taints", ())}


def let_agents_be_where(product: Product, label: str | None) -> None:
    """Let agents run on nodes with this label only; None: on all."""
    where = {"nodeSelector": {"nodeagent.io/test": label}}
    daemonset = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/nodeagent"
    product.node.api.patch(daemonset, {"spec": {"template": {"spec": where}}})


def test_a_new_node_takes_pods_once_its_agent_is_ready(born_tainted: Cluster, product: Product, pods: Pods) -> None:
    """And not before; the lines that see to it are those of docs/starting.md."""
    [lines] = [
        lines for lines in re.findall(r"```sh\n(.*?)```", STARTING.read_text(), re.DOTALL) if "not-ready-" in lines
    ]
    agents = f"/api/v1/namespaces/{NAMESPACE}/pods"
    path = f"/api/v1/namespaces/{pods.namespace}/pods"
    sleeper = {"name": "main", "image": born_tainted.image, "command": ["sleep", "infinity"]}
    let_agents_be_where(product, "nowhere")
    try:
        product.wait(lambda: not born_tainted.api.get(agents)["items"])
        born_tainted.api.create(path, {"metadata": {"name": "waits"}, "spec": {"containers": [sleeper]}})
        born_tainted.api.until(f"{path}/waits", lambda pod: "untolerated taint" in json.dumps(pod))
        assert "untainted" not in born_tainted.run(["sh", "-c", lines])
        assert not born_tainted.api.get(f"{path}/waits")["spec"].get("nodeName")
    finally:
        let_agents_be_where(product, None)
    product.wait(lambda: "untainted" in born_tainted.run(["sh", "-c", lines]))
    pods.ready("waits")
