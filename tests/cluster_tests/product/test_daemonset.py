"""The DaemonSet as it ships: who its processes are, and what it does whatever is restarted around it."""

import signal
from collections.abc import Iterator

import pytest

from nodeagent.cli.capabilities import CAPABILITIES
from tests.cluster import Cluster
from tests.cluster.daemon import Daemon
from tests.cluster.pods import Pod, Pods
from tests.cluster.product import NAMESPACE, Product
from tests.cluster.starts import Starts
from tests.cluster.traffic import PORTS, Load, run_far
from tests.cluster_tests.test_agent import annotate

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

AGENT_UID = 65532
ALL_CAPABILITIES = ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")
STARTS = 10

# ── who they are ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_agent_is_nobody_and_can_do_nothing(daemon: Daemon) -> None:
    says = daemon.status("agent")
    assert set(says["Uid"].split()) == set(says["Gid"].split()) == {str(AGENT_UID)}
    assert {int(says[name], 16) for name in ALL_CAPABILITIES} == {0}
    assert (says["NoNewPrivs"], says["Seccomp"], says["NSpid"].split()[-1]) == ("1", "2", "1")
    places = daemon.mounts("agent")
    read_only = ("/", "/run/seam", "/host/cgroup", "/var/run/netns", "/etc/nodeagent")
    assert {places.get(place, places.get(place.removeprefix("/var"))) for place in read_only} == {"ro"}
    assert not [place for place in places if place.startswith(("/host/proc", "/sys/fs/bpf")) or "nri" in place]


def test_the_programmer_has_its_capabilities_no_token_and_no_network(daemon: Daemon) -> None:
    says = daemon.status("programmer")
    wanted = sum(1 << needed.number for needed in CAPABILITIES.values())
    assert {int(says[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {wanted}
    assert (says["NoNewPrivs"], says["Seccomp"], says["NSpid"].split()[-1]) == ("1", "2", "1")
    devices = daemon.says("programmer", "net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]
    places = daemon.mounts("programmer")
    assert places["/"] == places["/host/proc"] == places["/host/cgroup"] == "ro"
    assert not [place for place in places if "serviceaccount" in place]


def test_neither_uses_the_nodes_own_namespaces(daemon: Daemon) -> None:
    for container in ("agent", "programmer"):
        process = daemon.process(container)
        for kind in ("net", "pid", "mnt", "ipc"):
            ours, nodes = (daemon.node.run(["readlink", f"/proc/{one}/ns/{kind}"]) for one in (process, "1"))
            assert ours != nodes, (container, kind)


# ── no gap ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pod_that_dials_in_its_first_millisecond_is_intercepted(daemon: Daemon, pods: Pods) -> None:
    """The runtime's socket is root's alone: the agent, who is nobody, hears the runtime through the programmer."""
    daemon.product.wait(lambda: daemon.metrics()["nodeagent_runtime_connected"] == 1)
    before = daemon.metrics()["nodeagent_late_pods_total"]
    names = [f"start-{number}" for number in range(STARTS)]
    with Starts(daemon.node, {"nodeagent.io/intercept": "enabled"}) as starts:
        starts.begin(pods, names)
        assert [start.accepted for start in starts.wait(names)] == [0] * STARTS
        assert starts.unproxied()[0] == {}
    assert daemon.metrics()["nodeagent_late_pods_total"] == before


# ── restarted under traffic ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def load(cluster: Cluster, installed: Product) -> Iterator[Load]:
    """Run one load through all of these tests."""
    with Pods(cluster) as pods:
        load = Load(cluster, pods, run_far(pods))
        daemon = Daemon(installed)
        daemon.product.wait(lambda: daemon.is_settled(load.pod))
        with load:
            yield load


def replaced(daemon: Daemon) -> None:
    """Roll out a new pod in the place of this one."""
    daemon.node.kubectl("rollout", "restart", "daemonset/nodeagent", f"--namespace={NAMESPACE}")
    daemon.product.wait_for_rollout()


def without_api_server(daemon: Daemon) -> None:
    """End the API server; the agent, which goes on with what it knows, stays ready meanwhile."""
    daemon.node.stop("kube-apiserver", signal.SIGKILL)
    try:
        assert daemon.probe()[0] == 200
    finally:
        daemon.node.begin("kube-apiserver")


PARTS = {
    "agent": lambda daemon: daemon.kill("agent"),
    "programmer": lambda daemon: daemon.kill("programmer"),
    "the DaemonSet's pod": replaced,
    "kubelet": lambda daemon: daemon.node.restart("kubelet", signal.SIGKILL),
    "containerd": lambda daemon: daemon.node.restart("containerd", signal.SIGKILL),
    "kube-apiserver": without_api_server,
}


@pytest.mark.parametrize("part", PARTS)
def test_restarted_under_traffic_nothing_is_lost(daemon: Daemon, load: Load, part: str) -> None:
    """No connection is refused, reset or goes direct; no rule is written anew; each connection is counted, once."""
    rules, epoch = rules_of(daemon, load.pod), daemon.row(load.pod)["epoch"]
    PARTS[part](daemon)
    load.goes_on()
    assert rules_of(daemon, load.pod) == rules
    daemon.product.wait(daemon.is_ready)
    daemon.product.wait(lambda: daemon.is_settled(load.pod), lambda: daemon.row(load.pod))
    assert daemon.row(load.pod)["epoch"] == epoch
    said = load.paused()
    assert set(said["fresh"]) == set(said["held"]) == {"proxy"}, said
    made = said["fresh"]["proxy"] + len(load.pod.addresses)  # and those that it keeps
    daemon.product.wait(lambda: counted(daemon, load.pod)[0] >= made, lambda: (made, daemon.flows(load.pod)))
    assert counted(daemon, load.pod) == (made, 0)
    load.resume()
    annotate(load.pod, excludeOutboundPorts=str(PORTS[1] + epoch))  # what is new takes effect again
    daemon.product.wait(lambda: daemon.is_settled(load.pod, after=epoch), lambda: daemon.row(load.pod))


def counted(daemon: Daemon, pod: Pod) -> tuple[int, int]:
    """Return how many of the load's connections were intercepted, and how many were not."""
    return tuple(daemon.connections(pod, verdict=verdict, container="load") for verdict in ("intercepted", "bypassed"))  # type: ignore[return-value]


def rules_of(daemon: Daemon, pod: Pod) -> str:
    """Return the rules of *pod* with the kernel's numbers for them, without counters."""
    (process, *_) = daemon.product.processes(pod.uid)
    inside = ["nsenter", f"--net=/proc/{process}/ns/net", "nft", "--stateless", "--handle", "list", "ruleset"]
    return daemon.node.run(inside)
