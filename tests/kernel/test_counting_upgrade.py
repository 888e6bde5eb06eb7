"""Kill the loader at any of its steps, change programs and layouts under traffic: nothing is lost or counted twice.

``NODEAGENT_LOADER_KILLS=N`` kills N times: emulated kernels are slow.
"""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nodeagent.bpf.counting import Counting, Settings
from nodeagent.bpf.generations import Folder
from nodeagent.bpf.slots import SlotReader
from nodeagent.model.flow import FlowClass, FlowFlags, FlowKind, SlotState
from tests.kernel.conftest import counted_pod
from tests.kernel.counting_lab import CountedTopology, oracle, plus, settled, totals
from tests.kernel.load_driver import write_sources
from tests.kernel.ptrace import kill_at
from tests.lab import Cgroup, Dial, LoadPlan, PodCgroups, Topology

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("NODEAGENT_LOADER_KILLS", "100"))
TARGETS = (("203.0.113.10", 443), ("2001:db8:1::10", 443))
STEPS = frozenset({321, 73, 82, 83, 84, 87, 324})
"""What a loader does to the kernel, as x86-64 numbers it: bpf, flock, rename, mkdir, rmdir, unlink, membarrier."""
DRIVER = "tests.kernel.load_driver"


@dataclass(frozen=True)
class Loader:
    """Runs the driver, to its end or not."""

    settings: Settings
    directory: Path

    def command(self, version: str) -> list[str]:
        return [sys.executable, "-m", DRIVER, version, str(self.settings.cgroup), str(self.directory)]

    def load(self, version: str) -> None:
        subprocess.run(self.command(version), check=True)

    def kill(self, version: str, step: int) -> bool:
        """Kill it at one of its steps; False if it had fewer."""
        command = self.command(version)
        return kill_at(step, lambda: os.execv(command[0], command), STEPS)[0]  # noqa: S606  # no shell is wanted

    def generations(self) -> int:
        return len(Folder(self.settings.bpffs).generations())


@pytest.fixture
def loader(counting_settings: Settings, tmp_path: Path) -> Iterator[Loader]:
    made = Loader(counting_settings, tmp_path)
    for version in ("layout", "program", "this"):  # compiled now, once
        write_sources(version, tmp_path)
        made.load(version)
    Folder(counting_settings.bpffs).remove()
    yield made
    Folder(counting_settings.bpffs).remove()


@pytest.fixture
def pod(loader: Loader, node_cgroup: Cgroup) -> Iterator[CountedTopology]:
    """Count a pod by what the driver loads; this process only looks."""
    cgroups = PodCgroups(node_cgroup, "upgraded")
    loader.load("this")
    with (
        Counting.load(loader.settings) as counting,
        Topology(cgroups=cgroups) as topology,
        CountedTopology(topology, cgroups, counting, counted_pod(cgroups)) as lab,
    ):
        yield lab


def changes(kills: int) -> list[str]:
    """Return which version is loaded each time: every tenth has another layout, every other tenth other programs."""
    return [{0: "layout", 5: "program"}.get(number % 10, "this") for number in range(kills)]


def test_killed_and_upgraded_loaders_lose_and_double_nothing(
    loader: Loader, pod: CountedTopology, capsys: pytest.CaptureFixture[str]
) -> None:
    chance, killed = random.Random(KILLS), 0
    before = oracle(pod.topology.pod)
    with pod.topology.client.open_connection(Dial("203.0.113.10", 444)) as lasting:
        with pod.topology.load(LoadPlan(TARGETS, in_flight=8, per_second=300)) as load:
            for version in changes(KILLS):
                killed += loader.kill(version, chance.randint(1, 150 if version == "layout" else 48))
                assert lasting.echo() == "world"
            loader.load("layout")
            loader.load("this")
            report = load.stop()
        lasting.abort()
    with Counting.load(loader.settings) as counting, SlotReader(counting.slots_fd) as reader:
        counted, wire = settled(lambda: (totals(reader, pod.pod.id), oracle(pod.topology.pod)))
        health = counting.health()
    with capsys.disabled():
        total = plus(*counted.values())
        print(
            f"\n{killed} of {KILLS} loads killed; {len(report.records)} connections, {total.bytes} bytes: all counted"
        )
    assert not report.broken()
    assert loader.generations() == 1
    assert (health.lost_updates, health.lost) == (0, 0)
    assert {(key.flow_class, key.flags, key.epoch) for key in counted} == {(FlowClass.BYPASSED, FlowFlags.NONE, 2)}
    for address, port in (*TARGETS, ("203.0.113.10", 444)):
        (flow,) = (c for key, c in counted.items() if (str(key.destination), key.port) == (address, port))
        packets, size = wire[6, address, port]
        packets_before, size_before = before.get((6, address, port), (0, 0))
        assert (flow.packets, flow.bytes) == (packets - packets_before, size - size_before)
        dialled = sum(record.dialled == (address, port) for record in report.records)
        assert flow.connections == (dialled or 1)
    assert killed > KILLS // 2


@pytest.mark.parametrize("version", ["program", "layout"])
def test_an_upgrade_and_its_rollback_keep_every_count(version: str, loader: Loader, pod: CountedTopology) -> None:
    with pod.topology.client.open_connection(Dial("203.0.113.10", 443)) as connection:
        pod.counting.evict([(s.position, s.generation) for s in pod.reader.read() if s.key.kind is FlowKind.FLOW])
        for loaded in (version, "this", version, version, "this"):
            loader.load(loaded)
            assert connection.echo() == "world"
        connection.abort()
    with Counting.load(loader.settings) as counting, SlotReader(counting.slots_fd) as reader:
        counted, wire = settled(lambda: (totals(reader, pod.pod.id), oracle(pod.topology.pod)))
        states = [slot.state for slot in reader.read() if slot.key.kind is FlowKind.FLOW]
    assert sorted(states) == [SlotState.LIVE, SlotState.EVICTED], "what waits to be folded is found again"
    ((key, flow),) = counted.items()
    assert (key.flags, flow.connections) == (FlowFlags.NONE, 1)
    assert (flow.packets, flow.bytes) == wire[6, "203.0.113.10", 443]
    assert loader.generations() == 1
