"""The wire guard counts what no cgroup hook can see, and nothing else."""

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodeagent.bpf import guard
from nodeagent.errors import KernelError
from tests.kernel.counting_lab import CountedTopology, bypassed
from tests.lab import Dial, Topology

pytestmark = pytest.mark.kernel

OUTSIDE, OUTSIDE_6 = "203.0.113.10", "2001:db8:1::10"


@pytest.fixture
def pod(counted: CountedTopology) -> CountedTopology:
    """Return a counted pod, its veth guarded: the lab's world stands for the host."""
    assert attach(counted) == {}
    return counted


def attach(pod: CountedTopology) -> dict[int, str]:
    return guard.attach(pod.counting.guard, Path(pod.topology.world.path), [host_side(pod.topology)])


@contextmanager
def unseen(pod: CountedTopology, packets: int) -> Iterator[None]:
    """See to it that so many packets pass unseen inside."""
    before = pod.counting.health().unseen_packets
    yield
    assert pod.counting.health().unseen_packets - before == packets


def host_side(lab: Topology) -> int:
    return int(lab.world.run(["ip", "-o", "link", "show", "world0"]).partition(":")[0])


def frame(payload: bytes, family: int) -> bytes:
    """Return a UDP packet, in an Ethernet frame to the world."""
    udp = struct.pack("!HHHH", 4000, 4001, 8 + len(payload), 0) + payload
    if family == socket.AF_INET:
        addresses = [socket.inet_aton(address) for address in ("10.244.1.5", OUTSIDE)]
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, *addresses)
    else:
        addresses = [socket.inet_pton(family, address) for address in ("fd00:244:1::5", OUTSIDE_6)]
        head = struct.pack("!IHBB16s16s", 6 << 28, len(udp), 17, 64, *addresses)
    kind = b"\x08\x00" if family == socket.AF_INET else b"\x86\xdd"
    return bytes.fromhex("020000000101020000000105") + kind + head + udp


def sends_frames(lab: Topology, number: int = 3) -> None:
    """Send packets of either family by turns that no socket hook sees."""
    with lab.pod.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        for turn in range(number):
            sock.send(frame(b"unseen", socket.AF_INET6 if turn % 2 else socket.AF_INET))


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
    with pod.expect(), unseen(pod, 4):
        sends_frames(pod.topology, 4)


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_traffic_is_not(name: str, pod: CountedTopology) -> None:
    with unseen(pod, 0):
        ORDINARY[name](pod.topology)


def test_what_is_counted_and_what_is_unseen_add_up(pod: CountedTopology) -> None:
    with pod.expect(bypassed(OUTSIDE, 443)), unseen(pod, 4):
        pod.topology.client.open_connection(Dial(OUTSIDE, 443)).abort()
        sends_frames(pod.topology, 4)


def test_attaching_again_counts_once(pod: CountedTopology) -> None:
    assert attach(pod) == {}
    with unseen(pod, 4):
        sends_frames(pod.topology, 4)


def test_a_guard_that_was_removed_counts_nothing(pod: CountedTopology) -> None:
    for _ in range(2):
        assert guard.detach(Path(pod.topology.world.path), [host_side(pod.topology)]) == {}
    with unseen(pod, 0):
        sends_frames(pod.topology, 4)


def test_an_interface_that_is_not_there_is_named(pod: CountedTopology) -> None:
    assert guard.attach(pod.counting.guard, Path(pod.topology.world.path), [9999]) == {9999: "No such device"}


def test_a_program_that_is_not_pinned(pod: CountedTopology) -> None:
    with pytest.raises(KernelError, match="no wire guard"):
        guard.attach(Path("/sys/fs/bpf/nothing"), Path(pod.topology.world.path), [1])
