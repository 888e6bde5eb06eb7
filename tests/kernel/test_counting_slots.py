"""Slots change hands, fill up and are given back, under traffic and kills: the books close to the byte."""

import mmap
import os
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodeagent.bpf import layout
from nodeagent.bpf.counting import Counting, Settings
from nodeagent.bpf.slots import SlotReader
from nodeagent.errors import KernelError
from nodeagent.model.flow import FlowClass, FlowKey, FlowKind, Slot, SlotState
from tests.kernel.conftest import counted_pod
from tests.kernel.counting_lab import (
    PROTOCOLS,
    CountedTopology,
    bypassed,
    minus,
    oracle,
    plus,
    release_all,
    settled,
    totals,
)
from tests.kernel.ptrace import kill_at
from tests.lab import Cgroup, Dial, LoadPlan, PodCgroups, Topology

pytestmark = pytest.mark.kernel

BPF = frozenset({321, 280})
"""bpf(2), as x86-64 and arm64 number it."""
SINK = "203.0.113.10"


@pytest.fixture
def pod(counting: Counting, node_cgroup: Cgroup, request: pytest.FixtureRequest) -> Iterator[CountedTopology]:
    """Count a fresh pod, without rules."""
    cgroups = PodCgroups(node_cgroup, f"{abs(hash(request.node.name))}")
    with (
        Topology(cgroups=cgroups) as topology,
        CountedTopology(topology, cgroups, counting, counted_pod(cgroups)) as lab,
    ):
        yield lab


def slots(pod: CountedTopology, *states: SlotState) -> list[Slot]:
    """Return the pod's slots in these states, reserved ones left out."""
    wanted = states or (SlotState.LIVE,)
    return [
        slot
        for slot in pod.reader.read()
        if slot.key.pod == pod.pod.id and slot.key.kind is not FlowKind.OVERFLOW and slot.state in wanted
    ]


def sent(pod: CountedTopology) -> tuple[int, ...]:
    """Return all that the pod has sent; answers may still be under way."""
    return plus(*pod.totals().values())[:5]


def folded(key: FlowKey, reason: int = 7) -> FlowKey:
    """Return the key that all flows like *key* are folded into."""
    return FlowKey(
        key.pod, key.container, ip_address("0.0.0.0"), reason, key.protocol, 0, 0, key.flow_class, kind=FlowKind.FOLDED
    )


def fold(pod: CountedTopology, chosen: list[Slot]) -> None:
    """Evict *chosen* and fold them."""
    pod.counting.evict([(slot.position, slot.generation) for slot in chosen])
    assert pod.counting.release([(slot.position, slot.generation, folded(slot.key)) for slot in chosen]) == []


@contextmanager
def sender(pod: CountedTopology) -> Iterator[Callable[[int, bytes], object]]:
    """Send datagrams to the ports of one address from one unconnected socket."""
    with pod.topology.pod.socket(socket.AF_INET, socket.SOCK_DGRAM, uid=1000, gid=1000) as sock:
        yield lambda port, payload: sock.sendto(payload, (SINK, port))


def test_a_flow_goes_on_in_another_slot_when_its_own_is_evicted(pod: CountedTopology) -> None:
    with pod.expect(bypassed(SINK, 443)), pod.topology.client.open_connection(Dial(SINK, 443)) as connection:
        (first,) = slots(pod)
        pod.counting.evict([(first.position, first.generation)])
        assert connection.echo() == "world"
        (second,) = slots(pod)
        assert second.position != first.position
        assert (second.key, second.counters.connections) == (first.key, 0)
        (kept,) = slots(pod, SlotState.EVICTED)
        assert kept._replace(state=SlotState.LIVE) == first
        connection.abort()


def test_what_is_received_while_a_slot_changes_hands_is_counted(pod: CountedTopology) -> None:
    with pod.topology.pod.socket(socket.AF_INET, socket.SOCK_DGRAM, uid=1000, gid=1000) as sock:
        sock.connect((SINK, 9999))
        sock.send(b"lab question\n")
        assert sock.recv(1000)
        (first,) = slots(pod)
        fold(pod, [first])
        sock.send(b"lab question\n")
        assert sock.recv(1000)
        everything = plus(*pod.totals().values())
    assert everything.connections == 1
    assert everything.packets == 2
    assert everything.received_bytes == 2 * first.counters.received_bytes
    assert everything.received_packets == 2 * first.counters.received_packets


def test_folding_adds_up_and_frees(pod: CountedTopology) -> None:
    with sender(pod) as send:
        for port in range(5000, 5020):
            send(port, b"x" * (port - 4990))
    before, entries = sent(pod), pod.counting.health().entries
    fold(pod, slots(pod))
    assert entries == 20
    assert [key.kind for key in pod.totals()] == [FlowKind.FOLDED]
    assert sent(pod) == before
    assert pod.counting.health().entries == 1


def test_what_is_dropped_is_freed(pod: CountedTopology) -> None:
    with sender(pod) as send:
        send(5000, b"x")
    (slot,) = slots(pod)
    pod.counting.evict([(slot.position, slot.generation)])
    assert pod.counting.release([(slot.position, slot.generation, None)]) == []
    assert pod.totals() == {}


def test_asking_again_changes_nothing(pod: CountedTopology) -> None:
    with sender(pod) as send:
        send(5000, b"x")
        (slot,) = slots(pod)
        for _ in range(3):
            fold(pod, [slot])
        send(5001, b"y")
        fold(pod, [slot])
    found = {key.kind: value[:5] for key, value in pod.totals().items() if value.packets}
    assert found == {FlowKind.FOLDED: (1, 1, 1, 29, 1), FlowKind.FLOW: (1, 1, 1, 29, 1)}


def test_a_slot_of_another_generation_is_left_alone(pod: CountedTopology) -> None:
    with sender(pod) as send:
        send(5000, b"x")
    (slot,) = slots(pod)
    pod.counting.evict([(slot.position, slot.generation + 1), (slot.position, slot.generation - 1)])
    assert [found[:4] for found in slots(pod)] == [slot[:4]]  # all but its counters: an answer may still come


def test_folding_under_traffic_loses_and_doubles_nothing(pod: CountedTopology) -> None:
    targets = tuple((SINK, port) for port in range(6000, 6040))
    chance = random.Random(1)
    with pod.topology.load(LoadPlan(targets, connections=1500, in_flight=16)) as load:
        while not load.is_done():
            live = [slot for slot in slots(pod) if slot.key.kind is FlowKind.FLOW]
            fold(pod, chance.sample(live, len(live) // 2))
        report = load.report()
    assert not report.broken()
    assert_books_close(pod, connections=len(report.records))


def assert_books_close(pod: CountedTopology, connections: int) -> None:
    """Compare everything that the pod counted with what left it for the world.

    But for ICMP, with which the kernel itself answers what comes for a socket that has gone.
    """
    found, wires = settled(lambda: (pod.totals(), oracle(pod.topology.pod)))
    counted = plus(*found.values())
    seen = [size for (protocol, address, _), size in wires.items() if address == SINK and protocol != PROTOCOLS["icmp"]]
    assert (counted.packets, counted.bytes) == tuple(map(sum, zip(*seen, strict=True)))
    assert counted.connections == connections


def test_a_fold_that_is_killed_between_its_steps_is_done_once(pod: CountedTopology) -> None:
    with sender(pod) as send:
        for port in range(5000, 5004):
            send(port, b"x" * 100)
        before = sent(pod)
        step, killed = 0, True
        while killed:
            step += 1
            chosen = [slot for slot in slots(pod) if slot.key.kind is FlowKind.FLOW]
            killed, _ = kill_at(step, lambda chosen=chosen: fold(pod, chosen), BPF)  # type: ignore[misc]
            assert sent(pod) == before
            left = slots(pod, SlotState.EVICTED)
            assert pod.counting.release([(s.position, s.generation, folded(s.key)) for s in left]) == []
            assert sent(pod) == before
            for port in range(5000, 5004):
                send(port, b"x" * 100)
            before = sent(pod)
        assert step > 8
    assert_books_close(pod, connections=4)


def test_a_full_map_keeps_the_totals_exact_and_tells(pod: CountedTopology) -> None:
    capacity, more = pod.counting.health().capacity, 500
    addresses = [f"198.18.{number >> 8}.{number & 255}" for number in range(1, capacity + more + 1)]
    pod.topology.world.nft("insert rule inet world answers udp dport 9 drop")  # answers need a slot, too
    with pod.topology.pod.socket(socket.AF_INET, socket.SOCK_DGRAM, uid=1000, gid=1000) as sock:
        for address in addresses:
            sock.sendto(b"x", (address, 9))
        health, counted = pod.counting.health(), pod.totals()
        overflow = [value for key, value in counted.items() if key.kind is FlowKind.OVERFLOW]
        assert (health.entries, health.lost_updates, health.lost) == (capacity, more, 0)
        assert [value[:5] for value in overflow] == [(more, more, more, more * 29, more)]
        assert plus(*counted.values())[:5] == (
            len(addresses),
            len(addresses),
            len(addresses),
            29 * len(addresses),
            len(addresses),
        )
        fold(pod, slots(pod)[:100])
        health, after = pod.counting.health(), pod.totals()
        assert (health.entries, health.lost_updates) == (capacity - 99, more), "it takes no slot to fold"
        assert [value for key, value in after.items() if key.kind is FlowKind.OVERFLOW] == overflow
        assert plus(*after.values()) == plus(*counted.values())
        sock.sendto(b"x", ("198.19.0.1", 9))
    assert any(str(key.destination) == "198.19.0.1" for key in pod.totals())


def test_a_full_map_overflows_by_class(pod: CountedTopology) -> None:
    capacity = pod.counting.health().capacity
    with sender(pod) as send:
        for port in range(1, capacity + 1):
            send(port, b"x")
    with pod.topology.client.open_connection(Dial(SINK, 443)) as app:
        with pod.topology.client.open_connection(Dial(SINK, 443, cgroup=str(pod.cgroups.sidecar.path))) as sidecar:
            assert (app.echo(), sidecar.echo()) == ("world", "world")
            sidecar.abort()
        app.abort()
    counted, wires = settled(lambda: (pod.totals(), oracle(pod.topology.pod)))
    overflow = {key.flow_class: value for key, value in counted.items() if key.kind is FlowKind.OVERFLOW}
    assert {name: value.connections for name, value in overflow.items()} == {FlowClass.BYPASSED: 1, FlowClass.PROXY: 1}
    (packets, size) = wires[6, SINK, 443]
    assert plus(*overflow.values())[1:4:2] == (packets, size)


def test_two_cpus_that_meet_a_new_destination_take_one_slot(pod: CountedTopology) -> None:
    ports, threads = range(20000, 22000), max(2, os.cpu_count() or 2)
    barrier = threading.Barrier(threads)

    def send_all() -> None:
        with sender(pod) as send:
            for port in ports:
                if not port % 50:
                    barrier.wait()
                send(port, b"x")

    workers = [threading.Thread(target=send_all) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = Counter(slot.key.port for slot in slots(pod))
    assert set(found.values()) == {1}
    assert set(found) == set(ports)
    assert {slot.counters.packets for slot in slots(pod)} == {threads}
    health = pod.counting.health()
    assert (health.entries, health.lost_updates) == (len(ports), 0)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_thousands_of_pods_come_and_go_and_nothing_grows(
    counting: Counting, node_cgroup: Cgroup, pod: CountedTopology
) -> None:
    before = counting.health().entries
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    container = node_cgroup.child("podpassing")
    with SlotReader(counting.slots_fd) as reader:
        for number in range(2000):
            passing = replace(pod.pod, id=container.id, number=2 + number % 1000, sidecars=frozenset({number + 1}))
            counting.enrol(passing)
            with pod.topology.pod.socket(
                socket.AF_INET, socket.SOCK_DGRAM, uid=1000, gid=1000, cgroup=str(container.path)
            ) as sock:
                sock.sendto(b"x", (SINK, 1 + number % 60000))
            assert plus(*totals(reader, passing.id).values()).packets == 1
            counting.forget(passing.id)
            release_all(counting, passing.id)
    assert counting.health().entries == before
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_a_pod_that_is_forgotten_is_counted_no_longer(pod: CountedTopology) -> None:
    with pod.topology.client.open_connection(Dial(SINK, 443)) as connection:
        pod.counting.forget(pod.pod.id)
        before = pod.totals()
        assert connection.echo() == "world"
        assert pod.totals() == before
        assert {slot.state for slot in pod.reader.read()} == {SlotState.EVICTED}
        release_all(pod.counting, pod.pod.id)
        assert pod.reader.read() == []
        assert pod.counting.health().entries == 0
        connection.abort()


def test_a_number_is_given_out_again_only_after_its_slots_were_released(pod: CountedTopology) -> None:
    other = replace(pod.pod, id=pod.pod.id + 1)
    with pytest.raises(KernelError, match="number 1 is another pod's"):
        pod.counting.enrol(other)
    pod.counting.forget(pod.pod.id)
    with pytest.raises(KernelError, match="number 1 is another pod's"):
        pod.counting.enrol(other)
    release_all(pod.counting, pod.pod.id)
    pod.counting.enrol(other)
    pod.counting.forget(other.id)
    release_all(pod.counting, other.id)


def test_who_is_enrolled_outlives_the_process(pod: CountedTopology, counting_settings: Settings) -> None:
    with Counting.load(counting_settings) as another:
        assert another.enrolled() == {pod.pod.id: pod.pod}
        pod.counting.forget(pod.pod.id)
        assert another.enrolled() == {}


@pytest.mark.parametrize("number", [0, layout.PODS, -1])
def test_numbers_that_name_no_reserved_slots_are_refused(number: int, pod: CountedTopology) -> None:
    with pytest.raises(ValueError, match="a pod's number is 1 to 1023"):
        pod.counting.enrol(replace(pod.pod, number=number))


def test_the_epoch_is_the_one_of_the_first_packet(pod: CountedTopology) -> None:
    with pod.topology.client.open_connection(Dial(SINK, 443)) as older:
        pod.counting.set_epoch(pod.pod.id, 3)
        with pod.topology.client.open_connection(Dial(SINK, 443)) as between:
            pod.counting.set_epoch(pod.pod.id, 4)
            for connection in (older, between):
                assert connection.echo() == "world"
                connection.abort()
    pod.topology.client.connect(Dial(SINK, 443))
    assert {key.epoch: value.connections for key, value in pod.totals().items()} == {2: 1, 3: 1, 4: 1}


def test_the_epoch_of_a_pod_that_is_not_counted(counting: Counting) -> None:
    with pytest.raises(KernelError, match="pod 12345 is not counted"):
        counting.set_epoch(12345, 2)


def test_enrolling_again_changes_the_facts_and_keeps_the_counts(pod: CountedTopology) -> None:
    pod.topology.client.connect(Dial(SINK, 443, uid=2000))
    pod.counting.enrol(replace(pod.pod, uids=(2000, 3000), gids=(), epoch=4))
    pod.topology.client.connect(Dial(SINK, 443, uid=2000))
    pod.topology.client.connect(Dial(SINK, 443, uid=1337))
    found = {(key.epoch, key.owner.name): value.connections for key, value in pod.totals().items()}
    assert found == {(2, "NONE"): 1, (4, "UID"): 1, (4, "NONE"): 1}


def test_a_reader_keeps_what_did_not_change(pod: CountedTopology) -> None:
    with sender(pod) as send:
        send(5000, b"x")
        first = pod.reader.read()
        second = pod.reader.read()
        reserved = {slot.position: slot for slot in first if slot.key.kind is FlowKind.OVERFLOW}
        assert all(reserved.get(slot.position, slot) is slot for slot in second)
        send(5000, b"x")
        (slot,) = slots(pod)
    (before,) = (s for s in first if s.position == slot.position)
    assert slot.key is before.key
    assert minus(slot.counters, before.counters)[:5] == (0, 1, 1, 29, 1)


def test_whoever_reads_cannot_write(counting: Counting) -> None:
    with pytest.raises(PermissionError):
        mmap.mmap(counting.slots_fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
