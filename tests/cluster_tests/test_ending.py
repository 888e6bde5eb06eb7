"""A cluster leaves nothing behind, however it ends: on request, with its owner, with its keeper."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from tests.cluster import Cluster, ClusterError, client
from tests.cluster.directory import CGROUPS, NODE, NODE_PID, end
from tests.cluster.pods import Pods

pytestmark = pytest.mark.cluster

PATIENCE = 60.0
# What kubelet sets on an ordinary node, and what programs on a node may be after.
SYSCTLS = (
    *("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/hostname"),
    *("kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"),
)
NODE_FILES = (
    *("/run/containerd", "/run/nri", "/run/cni", "/run/cluster", "/run/state", "/var/lib/kubelet", "/var/lib/cni"),
    *("/etc/cni", "/etc/kubernetes", "/var/log/pods", "/var/log/containers", "/opt/cni", "/opt/containerd"),
)
OWNER = """
import sys
from pathlib import Path
from tests.cluster import Cluster
cluster = Cluster(Path(sys.argv[1]))
cluster.start()
cluster.attach()
print("up", flush=True)
sys.stdin.read()
"""


def machine() -> dict[str, object]:
    """Return what a cluster might leave behind, or change, on this machine."""
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "sysctls": {name: Path("/proc/sys", name).read_text() for name in SYSCTLS},
        "links": subprocess.run(["ip", "-brief", "link"], capture_output=True, check=True).stdout,
        "rules": subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True).stdout,
        "named namespaces": sorted(Path("/run/netns").glob("cni-*")),
        "files": [path for path in NODE_FILES if Path(path).exists()],
    }


class Footprint:
    """The processes, cgroups and files of a running cluster, so that one can see them gone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._cgroups = [Path(line) for line in (directory / CGROUPS).read_text().splitlines()]
        files = (file for cgroup in self._cgroups for file in cgroup.rglob("cgroup.procs"))
        pids = {int(line) for file in files for line in file.read_text().split()}
        self._processes: dict[int, int] = {}
        for pid in pids:
            with suppress(ProcessLookupError):  # it has ended by itself: what is coming up starts many that do
                self._processes[pid] = os.pidfd_open(pid)
        assert all(cgroup.is_dir() for cgroup in self._cgroups)

    @classmethod
    def when_there(cls, directory: Path) -> Self:
        """Return the footprint of a cluster that has only just been started."""
        deadline = time.monotonic() + PATIENCE
        while not (directory / NODE).exists():
            assert time.monotonic() < deadline, "no node"
            time.sleep(0.02)
        return cls(directory)

    def names(self) -> set[str]:
        """Return the names of the processes."""
        return {Path(f"/proc/{pid}/comm").read_text().strip() for pid in self._processes}

    def assert_gone(self) -> None:
        """Fail unless nothing is left."""
        # A pidfd becomes readable with the end of its process.
        ended, _, _ = select.select(self._processes.values(), [], [], 0)
        alive = {pid for pid, descriptor in self._processes.items() if descriptor not in ended}
        for descriptor in self._processes.values():
            os.close(descriptor)
        assert not alive
        assert not [cgroup for cgroup in self._cgroups if cgroup.exists()]
        assert not self._directory.exists()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that owns a cluster in `tmp_path / "cluster"`, and wait until that is up."""
    command = [sys.executable, "-c", OWNER, str(tmp_path / "cluster")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()


def test_nothing_is_left_of_a_cluster_with_pods(tmp_path: Path) -> None:
    before = machine()
    with Cluster(tmp_path / "cluster") as cluster:
        pods = Pods(cluster)
        pods.__enter__()  # and never left
        pods.run("forgotten")
        footprint = Footprint(cluster.directory)
        assert {"kubelet", "containerd", "etcd", "pause", "sleep"} <= footprint.names()
    footprint.assert_gone()
    assert machine() == before


def test_a_cluster_ends_with_its_owner(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    directory = tmp_path / "cluster"
    footprint = Footprint(directory)
    owner.kill()
    assert end(directory, PATIENCE), "the keeper went before it could be waited for"
    footprint.assert_gone()


def test_a_node_ends_with_its_keeper_and_is_swept_up_later(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    directory = tmp_path / "cluster"
    footprint, node = Footprint(directory), int((directory / NODE_PID).read_text())
    process, keeper = os.pidfd_open(node), os.pidfd_open(parent_of(node))
    signal.pidfd_send_signal(keeper, signal.SIGKILL)
    assert select.select([process], [], [], PATIENCE)[0], "the node outlived its keeper"
    for descriptor in (process, keeper):
        os.close(descriptor)
    Cluster(directory).close()
    footprint.assert_gone()
    assert owner.poll() is None


def test_a_node_that_cannot_start_says_why_and_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "programs").mkdir()
    monkeypatch.setattr(client, "programs_directory", lambda: tmp_path / "programs")
    directory = tmp_path / "cluster"
    cluster = Cluster(directory)
    cluster.start()
    footprint = Footprint.when_there(directory)
    with pytest.raises(ClusterError, match=r"did not come up.*/etcd"):
        cluster.attach()
    cluster.close()
    footprint.assert_gone()


def parent_of(process: int) -> int:
    """Return the id of the parent of *process*."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("PPid:"))
