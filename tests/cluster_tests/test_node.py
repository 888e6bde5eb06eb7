"""The node is what an agent finds on a real one, and no packet leaves it."""

import json
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.components import NRI_SOCKET, STATIC_PODS
from tests.cluster.images import write_program_image
from tests.cluster.pods import Pods
from tests.cluster.surroundings import NODE_NAME, WORLD

pytestmark = pytest.mark.cluster

CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


def version(text: str) -> tuple[int, int]:
    """Return major and minor of what a component calls itself, such as `containerd://2.3.7`."""
    major, minor = text.rpartition("/")[2].removeprefix("v").split(".")[:2]
    return int(major), int(minor)


def test_kubernetes_and_containerd_are_current(node: Cluster) -> None:
    info = node.api.get(f"/api/v1/nodes/{NODE_NAME}")["status"]["nodeInfo"]
    assert version(info["kubeletVersion"]) >= (1, 34)
    assert version(info["containerRuntimeVersion"]) >= (2, 1)


def test_every_component_runs(node: Cluster) -> None:
    expected = {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "containerd"}
    assert expected <= set(node.components())


def test_nri_listens_at_its_default_socket(node: Cluster) -> None:
    node.run(["python3", "-c", CONNECT, NRI_SOCKET])
    node.run(["python3", "-c", CONNECT, "/var/run/nri/nri.sock"])


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_there_is_no_default_route(node: Cluster, family: str) -> None:
    assert node.run(["ip", family, "route", "show", "default"]) == ""


def test_no_device_leads_out(node: Cluster, pods: Pods) -> None:
    """Devices of the node: its own pair, the bridge, and a pod's end for each pod."""
    pods.run("neighbour")
    links = json.loads(node.run(["ip", "-json", "link", "show"]))
    strangers = [link["ifname"] for link in links if link["ifname"] not in {"lo", "eth0", WORLD, "cni0"}]
    assert strangers
    for name in strangers:
        (link,) = json.loads(node.run(["ip", "-json", "link", "show", "dev", name]))
        assert link.get("master") == "cni0", link
        assert "link_netnsid" in link, link


def test_the_nodes_namespaces_are_not_the_machines(node: Cluster) -> None:
    for name in ("net", "mnt", "pid", "cgroup", "uts", "ipc"):
        assert node.run(["readlink", f"/proc/1/ns/{name}"]).strip() != str(Path(f"/proc/self/ns/{name}").readlink())


def test_the_machines_files_and_sysctls_cannot_be_written(node: Cluster) -> None:
    for path in ("/usr/stray", "/proc/sys/kernel/threads-max"):
        assert "Read-only file system" in node.attempt(["sh", "-c", f"echo 1 > {path}"]).stderr


def test_a_static_pod_runs_and_is_mirrored(node: Cluster) -> None:
    containers = [{"name": "main", "image": node.image, "command": ["sleep", "infinity"]}]
    spec = {"containers": containers, "terminationGracePeriodSeconds": 1}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "static"}, "spec": spec}
    file, path = f"{STATIC_PODS}/static.json", f"/api/v1/namespaces/default/pods/static-{NODE_NAME}"
    node.run(["sh", "-c", f"cat > {file}.new && mv {file}.new {file}"], json.dumps(manifest))
    try:
        node.api.until(path, lambda pod: pod and pod["status"]["phase"] == "Running")
    finally:
        node.run(["rm", file])
    node.api.until(path, lambda pod: pod is None)


def test_an_image_can_be_imported(node: Cluster, pods: Pods, tmp_path: Path) -> None:
    write_program_image(tmp_path / "image.tar", "localhost/imported:local", Path("/bin/busybox"))
    node.import_image(tmp_path / "image.tar")
    entry = {"image": "localhost/imported:local", "command": ["/busybox", "sleep", "infinity"]}
    assert "BusyBox" in pods.run("imported", container=entry).exec("/busybox")
