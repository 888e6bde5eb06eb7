"""A pod's cgroups and its network namespace are where the agent looks for them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster
from tests.cluster.pods import Pod, Pods

pytestmark = pytest.mark.cluster

PATIENCE = 60.0
GUARANTEED = {"resources": {"limits": {"cpu": "50m", "memory": "64Mi"}}}
BURSTABLE = {"resources": {"requests": {"cpu": "50m"}}}


def cgroup_of(node: Cluster, pod: Pod) -> Path:
    """Return the one cgroup2 directory whose name holds the pod's UID, relative to the node's root."""
    (found,) = node.cgroup2.rglob(f"*{pod.uid}*/")
    return found.relative_to(node.cgroup2)


def main_process(node: Cluster, pod: Pod) -> str:
    """Return the process id, on the node, of the pod's container: from its cgroup, as the node's processes see it."""
    (container,) = pod.container_ids
    mount = node.run(["findmnt", "--noheadings", "--output=TARGET", "--types=cgroup2"]).strip()
    return node.run(["cat", f"{mount}/{cgroup_of(node, pod)}/{container}/cgroup.procs"]).split()[0]


def wait_until_gone(path: Path) -> None:
    """Return when *path* has gone; a cgroup's end is no event that one could wait for."""
    deadline = time.monotonic() + PATIENCE
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("resources", "parent"),
    [({}, "kubepods/besteffort"), (BURSTABLE, "kubepods/burstable"), (GUARANTEED, "kubepods")],
    ids=["best effort", "burstable", "guaranteed"],
)
def test_a_pod_has_a_cgroup2_directory(node: Cluster, pods: Pods, resources: dict[str, Any], parent: str) -> None:
    pod = pods.run("placed", container=resources)
    cgroup = cgroup_of(node, pod)
    assert str(cgroup) == f"{parent}/pod{pod.uid}"
    containers = {path.name for path in (node.cgroup2 / cgroup).glob("*/")}
    assert len(containers) == 2, "the sandbox and the container"
    assert set(pod.container_ids) < containers


def test_a_pods_process_says_in_which_cgroup_it_is(node: Cluster, pods: Pods) -> None:
    pod = pods.run("placed")
    lines = node.run(["cat", f"/proc/{main_process(node, pod)}/cgroup"]).splitlines()
    assert f"0::/{cgroup_of(node, pod)}/{pod.container_ids[0]}" in lines


def test_a_pods_netns_is_found_by_its_process_and_by_name(node: Cluster, pods: Pods) -> None:
    pod = pods.run("placed")
    process = main_process(node, pod)
    inode = node.run(["stat", "--dereference", "--format=%i", f"/proc/{process}/ns/net"])
    named = node.run(["sh", "-c", "stat --format='%i %n' /run/netns/cni-*"]).splitlines()
    assert inode != node.run(["stat", "--dereference", "--format=%i", "/proc/1/ns/net"])
    assert [line for line in named if line.split()[0] == inode.strip()]
    addresses = json.loads(node.run(["nsenter", f"--net=/proc/{process}/ns/net", "ip", "-json", "addr"]))
    found = {entry["local"] for link in addresses for entry in link["addr_info"]}
    assert set(pod.addresses) <= found


def test_a_deleted_pods_cgroup_goes(node: Cluster, pods: Pods) -> None:
    pod = pods.run("brief")
    cgroup = node.cgroup2 / cgroup_of(node, pod)
    pod.delete()
    wait_until_gone(cgroup)
