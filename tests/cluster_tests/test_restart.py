"""Each component can be killed under a running pod, and the cluster works on; `test_agent` ends them in order."""

import signal

import pytest

from tests.cluster import Cluster
from tests.cluster.pods import Pods

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    "component",
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "containerd"],
)
def test_pods_outlive_that_it_is_killed_and_new_ones_start(node: Cluster, pods: Pods, component: str) -> None:
    pod = pods.run("old")
    before = node.components()
    node.restart(component, signal.SIGKILL)
    after = node.components()
    assert {name for name in before if before[name] != after.get(name)} == {component}
    assert pods.run("new").exec("echo", "works") == "works\n"
    (status,) = pod.now()["status"]["containerStatuses"]
    assert (status["restartCount"], status["containerID"].rpartition("/")[2]) == (0, pod.container_ids[0])


def test_the_api_being_away_leaves_pods_alone(node: Cluster, pods: Pods) -> None:
    pod = pods.run("lonely")
    node.stop("kube-apiserver")
    try:
        (container,) = pod.container_ids
        listed = node.run(["ctr", "--namespace=k8s.io", "tasks", "list"])
        assert f"{container}    " in listed
    finally:
        node.begin("kube-apiserver")
    assert pod.exec("echo", "still here") == "still here\n"
