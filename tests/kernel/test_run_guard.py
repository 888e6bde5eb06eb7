"""``nodeagent run`` guards wires: what passes unseen is told, and for that no namespace but the host's is entered."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.bpf import guard as guard_program
from nodeagent.bpf.counting import detach
from tests.kernel.test_counting_guard import sends_frames
from tests.lab import Cgroup, Dial, Netns, PodCgroups, Topology
from tests.lab.agent import NODEAGENT, Manifest, RunningAgent, inject

pytestmark = pytest.mark.kernel

FAR = Dial("203.0.113.10", 443)
UID = "5d0c-guard"
UNSEEN = "nodeagent_unseen_packets_total"


@pytest.fixture
def wired(kubepods: Cgroup) -> Iterator[Topology]:
    """Make a pod in a cgroup of its own; its veth ends in the world."""
    with Topology(cgroups=PodCgroups(kubepods.child("kubepods"), UID)) as lab:
        yield lab


@pytest.fixture
def at_home(tmp_path: Path, kubepods: Cgroup, programs: Path, wired: Topology) -> Iterator[RunningAgent]:
    """Run an agent whose host namespace is the world: it is started there, as a node's is in the node's."""
    with RunningAgent(tmp_path, kubepods.path, programs, within=wired.world) as running:
        running.wait(running.counts)
        yield running
    detach()


def manifest(lab: Topology, **annotations: str) -> Manifest:
    return Manifest("web", lab.pod.path, annotations, uid=UID, containers={"app": "app", "sidecar": "istio-proxy"})


def guard(agent: RunningAgent) -> dict[str, Any]:
    """Return what is known of the pod's guard, once that is decided."""
    agent.wait(lambda: (agent.pod("web").get("guard") or {}).get("state", "pending") != "pending")
    found: dict[str, Any] = agent.pod("web")["guard"]
    return found


def filters(netns: Netns) -> str:
    """Return the filters at the world's ends of the pod's wires."""
    return "".join(netns.run(["tc", "filter", "show", "dev", name, "ingress"]) for name in ("world0", "world1"))


def test_what_passes_unseen_is_told_and_nothing_else_is(at_home: RunningAgent, wired: Topology) -> None:
    at_home.add(manifest(wired))
    at_home.settle()
    assert guard(at_home) == {"state": "attached", "why": ""}
    assert wired.client.connect(FAR).verdict == "intercepted"
    assert wired.client.connect(Dial("203.0.113.10", 9999, "udp")).verdict == "bypassed"
    assert at_home.metrics()[UNSEEN] == 0
    sends_frames(wired)
    at_home.wait(lambda: at_home.metrics()[UNSEEN] == 3)


def test_another_agent_guards_again_and_counts_once(at_home: RunningAgent, wired: Topology) -> None:
    at_home.add(manifest(wired))
    guard(at_home)
    at_home.kill()
    sends_frames(wired)
    at_home.start()
    guard(at_home)
    sends_frames(wired)
    at_home.wait(lambda: at_home.metrics()[UNSEEN] == 6)


def test_a_guard_that_could_not_be_had_is_tried_again(
    tmp_path: Path, kubepods: Cgroup, programs: Path, wired: Topology
) -> None:
    """The kernel refuses for a while: a filter of another kind has the guard's place."""
    path = inject(tmp_path, "from nodeagent.agent import guards\nguards.AGAIN_SECONDS = 0.5\n")
    running = RunningAgent(tmp_path, kubepods.path, programs, within=wired.world)
    running.before = ("env", f"PYTHONPATH={path}")
    place = f"dev world0 ingress protocol all prio {guard_program._PRIORITY}".split()
    wired.world.run(["tc", "qdisc", "add", "dev", "world0", "clsact"])
    wired.world.run(["tc", "filter", "add", *place, "u32", "match", "u32", "0", "0"])
    try:
        with running:
            running.add(manifest(wired))
            assert guard(running)["state"] == "unavailable"
            assert UNSEEN not in running.metrics()
            wired.world.run(["tc", "filter", "del", *place])
            running.wait(lambda: guard(running)["state"] == "attached")
    finally:
        detach()


def test_the_guard_goes_with_the_counting(at_home: RunningAgent, wired: Topology, tmp_path: Path) -> None:
    at_home.add(manifest(wired))
    guard(at_home)
    assert filters(wired.world).count("nodeagent") == 2
    at_home.add(manifest(wired, intercept="disabled"))
    at_home.wait(lambda: "nodeagent" not in filters(wired.world))
    at_home.add(manifest(wired))
    at_home.wait(lambda: filters(wired.world).count("nodeagent") == 2)
    at_home.stop()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / str(wired.pod.pid)).symlink_to(f"/proc/{wired.pod.pid}")
    wired.world.run([*NODEAGENT, "uninstall", *at_home.places, "--proc", str(tmp_path / "proc")])
    assert "nodeagent" not in filters(wired.world)


def test_a_wire_that_ends_in_no_host_is_left_alone(agent: RunningAgent, wired: Topology) -> None:
    agent.add(manifest(wired))
    agent.settle()
    assert guard(agent) == {
        "state": "unavailable",
        "why": "no veth of it ends in the host's namespace: it has eth0 (veth), net1 (veth)",
    }
    assert "nodeagent" not in filters(wired.world)
    assert UNSEEN not in agent.metrics(), "unknown is not none"


@pytest.mark.parametrize(
    ("link", "has"),
    [
        pytest.param(
            "tuntap add dev eth0 mode tap", "it has no veth: it has eth0 (tun)", id="a device that is no veth"
        ),
        pytest.param("link show", "it has no veth: it has loopback only", id="no device at all"),
        pytest.param(
            "link add eth0 type veth peer name eth1",
            "no veth of it ends in the host's namespace: it has eth1 (veth), eth0 (veth)",
            id="a veth that begins and ends in the pod",
        ),
    ],
)
def test_a_pod_without_a_wire_says_so(agent: RunningAgent, pod: Netns, link: str, has: str) -> None:
    pod.run(["ip", *link.split()])
    agent.add(Manifest("web", pod.path))
    agent.settle()
    assert guard(agent) == {"state": "unavailable", "why": has}


def test_the_namespace_of_another_pod_is_never_entered(at_home: RunningAgent, wired: Topology) -> None:
    with Netns() as other:
        wired.pod.ip(f"link add eth9 type veth peer name theirs netns {other.pid}")
        at_home.add(manifest(wired))
        assert guard(at_home)["state"] == "attached"
        assert filters(wired.world).count("nodeagent") == 2
        assert "clsact" not in other.run(["tc", "qdisc", "show"])
