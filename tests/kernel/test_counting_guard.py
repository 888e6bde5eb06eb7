"""The wire guard counts what no cgroup hook can see, and nothing else."""

import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeagent.bpf import guard
from nodeagent.bpf.counting import Counting
from nodeagent.errors import KernelError
from tests.kernel.conftest import counted_pod
from tests.kernel.counting_lab import CountedTopology, bypassed
from tests.lab import Cgroup, Dial, PodCgroups, Topology

pytestmark = pytest.mark.kernel

OUTSIDE, OUTSIDE_6 = "203.0.113.10", "2001:db8:1::10"


@pytest.fixture
def pod(counting: Counting, node_cgroup: Cgroup) -> Iterator[CountedTopology]:
    """Count a fresh pod, its veth guarded: the lab's world stands for the host."""
    cgroups = PodCgroups(node_cgroup, "guarded")
    with (
        Topology(cgroups=cgroups) as topology,
        CountedTopology(topology, cgroups, counting, counted_pod(cgroups)) as lab,
    ):
        assert guard.attach(counting.guard, Path(topology.world.path), [host_side(topology)]) == {}
        yield lab


def host_side(lab: Topology) -> int:
    return int(lab.world.run(["ip", "-o", "link", "show", "world0"]).partition(":")[0])


def frame(payload: bytes) -> bytes:
    """Return a UDP packet, in an Ethernet frame to the world."""
    udp = struct.pack("!HHHH", 4000, 4001, 8 + len(payload), 0) + payload
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, bytes([10, 244, 1, 5]), socket.inet_aton(OUTSIDE)
    )
    return bytes.fromhex("0200000001010200000001050800") + ip + udp


def sends_frames(lab: Topology, number: int = 3) -> None:
    with lab.pod.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", socket.ntohs(0x0800)))
        for _ in range(number):
            sock.send(frame(b"unseen"))


def dials(*dials: Dial) -> Callable[[Topology], object]:
    return lambda lab: [lab.client.connect(dial) for dial in dials]


ORDINARY: dict[str, Callable[[Topology], object]] = {
    "TCP, IPv4": dials(Dial(OUTSIDE, 443)),
    "TCP, IPv6": dials(Dial(OUTSIDE_6, 443)),
    "UDP, IPv4": dials(Dial(OUTSIDE, 9999, "udp")),
    "UDP, IPv6": dials(Dial(OUTSIDE_6, 9999, "udp")),
    "a reset by the kernel, for a port where nobody listens": lambda lab: [
        lab.outside_client.connect(Dial(address, 4321)) for address in ("10.244.1.5", "fd00:244:1::5")
    ],
    "an ICMP error by the kernel": lambda lab: lab.outside_client.connect(Dial("10.244.1.5", 4321, "udp")),
}


def test_frames_past_the_sockets_are_told(pod: CountedTopology) -> None:
    with pod.expect():
        sends_frames(pod.topology)
    assert pod.counting.health().unseen_packets == 3


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_traffic_is_not(name: str, pod: CountedTopology) -> None:
    ORDINARY[name](pod.topology)
    assert pod.counting.health().unseen_packets == 0


def test_what_is_counted_and_what_is_unseen_add_up(pod: CountedTopology) -> None:
    with pod.expect(bypassed(OUTSIDE, 443)):
        pod.topology.client.open_connection(Dial(OUTSIDE, 443)).abort()
        sends_frames(pod.topology)
    assert pod.counting.health().unseen_packets == 3


def test_attaching_again_counts_once(pod: CountedTopology) -> None:
    interfaces = [host_side(pod.topology)]
    for _ in range(2):
        assert guard.attach(pod.counting.guard, Path(pod.topology.world.path), interfaces) == {}
    sends_frames(pod.topology)
    assert pod.counting.health().unseen_packets == 3


def test_a_guard_that_was_removed_counts_nothing(pod: CountedTopology) -> None:
    for _ in range(2):
        assert guard.detach(Path(pod.topology.world.path), [host_side(pod.topology)]) == {}
    sends_frames(pod.topology)
    assert pod.counting.health().unseen_packets == 0


def test_an_interface_that_is_not_there_is_named(pod: CountedTopology) -> None:
    assert guard.attach(pod.counting.guard, Path(pod.topology.world.path), [9999]) == {9999: "No such device"}


def test_a_program_that_is_not_pinned(pod: CountedTopology) -> None:
    with pytest.raises(KernelError, match="no wire guard"):
        guard.attach(Path("/sys/fs/bpf/nothing"), Path(pod.topology.world.path), [1])
