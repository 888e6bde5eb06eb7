"""Uninstalling, as docs/operations.md has it: no rule, pin, program, filter or file of ours is left on the node."""

from collections.abc import Iterator

import pytest

from daemonset.packaging.manifests import HOME
from tests.cluster import Cluster
from tests.cluster.pods import Pod, Pods, listening
from tests.cluster.product import NAMESPACE, Product
from tests.cluster_tests.test_agent import ANSWERS, PORT, dial, run_web

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def product(node: Cluster) -> Iterator[Product]:
    with Product(node) as product:
        yield product


@pytest.fixture
def far(pods: Pods) -> Pod:
    return pods.run("far", "python3", "-c", ANSWERS, str(PORT), "direct", container=listening(PORT))


def test_with_helm(product: Product, pods: Pods, far: Pod) -> None:
    product.make_namespace()
    product.install()
    web = run_web(pods, intercept="enabled")
    product.wait(lambda: dial(web, far) == {"proxy"})
    kinds = {trace.partition(" ")[0] for trace in product.traces([web])}
    assert kinds >= {"rule", "pin", "file"}, "the search finds what is there"
    product.upgrade("uninstall.enabled=true")
    assert product.traces([web, far]) == []
    assert dial(web, far) == {"direct"}
    product.remove()
    product.wait(lambda: left(product) == ["configmap/kube-root-ca.crt"])


def left(product: Product) -> list[str]:
    """Return what is in the namespace."""
    return product.node.kubectl("get", "all,configmap", f"--namespace={NAMESPACE}", "--output=name").split()


def test_with_plain_manifests(product: Product, pods: Pods, far: Pod) -> None:
    product.apply(HOME / "nodeagent.yaml")
    web = run_web(pods, intercept="enabled")
    product.wait(lambda: dial(web, far) == {"proxy"})
    product.apply(HOME / "uninstall.yaml")
    assert product.traces([web, far]) == []
    assert dial(web, far) == {"direct"}
    product.node.kubectl("delete", "--filename=-", stdin=(HOME / "nodeagent.yaml").read_text())
    assert "NotFound" in product.node.attempt(["kubectl", "get", "namespace", NAMESPACE]).stderr
