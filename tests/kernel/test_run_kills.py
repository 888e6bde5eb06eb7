"""Agents, programmers and loaders are killed and replaced by other versions under traffic: nothing is lost or doubled.

``NODEAGENT_RUN_KILLS=N`` kills N times: emulated kernels are slow, and whoever has the time may want thousands.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nodeagent.bpf.counting import detach
from tests.kernel.counting_lab import PROXY_PORT, Wire, oracle, settled, watch_wire
from tests.kernel.load_driver import write_package
from tests.lab import Address, Cgroup, Connection, Dial, LoadPlan, PodCgroups, Topology
from tests.lab.agent import Manifest, RunningAgent, inject

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("NODEAGENT_RUN_KILLS", "100"))
UID = "3f60-killed"
PER_SECOND = 150
COUNTERS = (
    "nodeagent_egress_bytes_total",
    "nodeagent_egress_connections_total",
    "nodeagent_egress_verdict_bytes_total",
)

INTERCEPTED: tuple[Address, ...] = (("203.0.113.10", 443), ("2001:db8:1::10", 443))
EXCLUDED: tuple[Address, ...] = (("203.0.113.10", 3306), ("2001:db8:1::10", 3306))
LASTING: tuple[Address, ...] = (("203.0.113.20", 443), ("203.0.113.20", 3306))

FUSE = """
import os, signal
from nodeagent.bpf import syscalls
fuse, burnt = Path({fuse!r}), Path({burnt!r})
call, left = syscalls._call, [0]
def step(command, attributes):
    if fuse.exists():
        left[0] = int(fuse.read_text())
        fuse.unlink()
    elif left[0]:
        left[0] -= 1
        if not left[0]:
            with burnt.open("a") as told:
                told.write("burnt\\n")
            os.kill(os.getpid(), signal.SIGKILL)
    return call(command, attributes)
syscalls._call = step
"""
"""Whoever changes the kernel's programs and maps calls bpf(2) for it: the fuse kills him at the n-th of these calls."""


@dataclass
class Node:
    """A pod under traffic, and an agent of a version that changes."""

    lab: Topology
    agent: RunningAgent
    versions: dict[str, Path]
    folder: Path
    version: str = "this"
    killed: Counter[str] = field(default_factory=Counter)
    upgrades: int = 0
    edits: int = 0
    seen: dict[str, float] = field(default_factory=dict)

    @property
    def kills(self) -> int:
        """How many processes were killed."""
        burnt = self.folder / "burnt"
        self.killed["loaders"] = len(burnt.read_text().splitlines()) if burnt.exists() else 0
        return self.killed.total()

    def open(self, to: Address) -> Connection:
        """Dial from the pod."""
        return self.lab.client.open_connection(Dial(*to))

    def edit(self) -> None:
        """Begin an epoch that excludes the same as before, of what is dialled."""
        self.edits += 1
        annotations = {"excludeOutboundPorts": f"3306,{7000 + self.edits}"}
        containers = {"app": "app", "sidecar": "istio-proxy"}
        self.agent.add(Manifest("web", self.lab.pod.path, annotations, UID, containers))

    def light(self, calls: int) -> None:
        """Let the process that calls bpf(2) next be killed so many calls later."""
        new = self.folder / "fuse.new"
        new.write_text(str(calls))
        new.rename(self.folder / "fuse")

    def kill_programmer(self) -> None:
        """Kill it, unless it died a moment ago."""
        try:
            os.kill(self.agent.programmer_pid, signal.SIGKILL)
        except (ProcessLookupError, FileNotFoundError, IndexError):
            return
        self.killed["programmers"] += 1

    def replace(self, version: str) -> None:
        """Kill the agent, and start one of *version*."""
        self.agent.kill()
        self.killed["agents"] += 1
        self.start(version)

    def start(self, version: str) -> None:
        """Start an agent of *version*, and look at once at what it says."""
        self.upgrades += version != self.version
        self.version = version
        path = f"{self.versions[version]}:{self.folder / 'injected'}"
        self.agent.before = ("env", "PYTHONSAFEPATH=1", f"PYTHONPATH={path}")
        self.agent.start()
        self.scrape()

    def rest(self) -> None:
        """Let the version come back that was there first, and nobody kill it."""
        (self.folder / "fuse").unlink(missing_ok=True)
        self.replace("this")
        self.agent.wait(self.agent.counts)
        self.agent.settle()

    def scrape(self) -> None:
        """See to it that no counter falls."""
        found = {name: value for name, value in self.agent.metrics().items() if name.startswith(COUNTERS)}
        fallen = {name: (self.seen[name], value) for name, value in found.items() if value < self.seen.get(name, 0)}
        assert not fallen, f"{fallen} after {self.kills} kills, version {self.version}"
        self.seen |= found

    def flows(self) -> dict[tuple[Address, str, str], tuple[int, int, int]]:
        """Return packets, bytes and connections by destination, verdict and reason."""
        found: dict[tuple[Address, str, str], tuple[int, int, int]] = {}
        for flow in self.agent.flows():
            key = (flow["address"], flow["port"]), flow["verdict"], flow["reason"]
            found[key] = flow["packets"], flow["bytes"], flow["connections"]
        return found


@pytest.fixture
def node(tmp_path: Path, kubepods: Cgroup, programs: Path) -> Iterator[Node]:
    """Make a node where each version has run once, and compiled its programs."""
    versions = {version: write_package(version, tmp_path) for version in ("layout", "program", "this")}
    inject(tmp_path, FUSE.format(fuse=str(tmp_path / "fuse"), burnt=str(tmp_path / "burnt")))
    agent = RunningAgent(tmp_path, kubepods.path, programs)
    with Topology(cgroups=PodCgroups(kubepods.child("kubepods"), UID)) as lab, agent.stopping():
        watch_wire(lab.pod)
        made = Node(lab, agent, versions, tmp_path)
        made.edit()
        for version in versions:
            agent.kill()
            made.start(version)
            agent.wait(agent.counts)
        agent.settle()
        made.upgrades = 0
        yield made
    detach()


def strike(node: Node, number: int, chance: random.Random) -> None:
    """Kill something in the middle of an edit; every tenth time another version comes, and five later it goes again."""
    node.edit()
    if number % 5 == 0:
        version = "this" if number % 10 else ("layout", "program")[number // 10 % 2]
        if chance.random() < 0.5:
            node.light(chance.randint(1, 400 if "layout" in (version, node.version) else 60))
        node.replace(version)
    elif number % 3 == 0:
        node.replace(node.version)
    else:
        if number % 3 == 1:
            node.light(chance.randint(1, 60))
        node.kill_programmer()


def test_what_is_killed_and_replaced_under_traffic_loses_and_doubles_nothing(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    chance, strikes, began = random.Random(KILLS), 0, time.monotonic()
    plan = LoadPlan((*INTERCEPTED, *EXCLUDED), in_flight=8, per_second=PER_SECOND)
    with node.open(LASTING[0]) as through, node.open(LASTING[1]) as past, node.lab.load(plan) as load:
        while node.kills < KILLS:
            strike(node, strikes, chance)
            strikes += 1
            if chance.random() < 0.5:
                node.agent.wait(node.agent.counts)
                node.scrape()
            else:
                time.sleep(chance.random() / 4)  # the next one strikes at any moment
            assert (through.echo(), past.echo()) == ("sidecar", "world")
        node.rest()
        report = load.stop()
        through.abort()
        past.abort()
    told, wire = settled(lambda: (node.flows(), oracle(node.lab.pod)))
    node.scrape()
    with capsys.disabled():
        print(
            f"\n{dict(node.killed)} killed, {node.upgrades} changes of version in {time.monotonic() - began:.0f} s:"
            f" all of {len(report.records)} connections and {sum(size for _, size, _ in told.values())} bytes counted"
        )
    assert not report.broken()
    assert {key: connections for key, (_, _, connections) in told.items()} == expected(report.verdicts())
    assert sizes(told) == {where: wire[where] for where in sizes(told)}
    assert node.upgrades >= KILLS // 10


def expected(dialled: Counter[tuple[Address, str]]) -> dict[tuple[Address, str, str], int]:
    """Return the connections that must be in the ledger, given those that the dialling side made."""
    reasons = {"intercepted": "included", "bypassed": "excluded_port"}
    wanted = dict.fromkeys(INTERCEPTED, "intercepted") | dict.fromkeys(EXCLUDED, "bypassed")
    assert dict(dialled.keys()) == wanted
    found = {(at, verdict, reasons[verdict]): count for (at, verdict), count in dialled.items()}
    lasting = zip(LASTING, reasons.items(), strict=True)
    return found | {(at, verdict, reason): 1 for at, (verdict, reason) in lasting}


def sizes(told: dict[tuple[Address, str, str], tuple[int, int, int]]) -> dict[Wire, tuple[int, int]]:
    """Return packets and bytes of flows by where they went on the wire."""
    packets, size = Counter[Wire](), Counter[Wire]()
    for (at, verdict, _), counted in told.items():
        sidecar = ("::1" if ":" in at[0] else "127.0.0.1"), PROXY_PORT
        wire: Wire = (6, *(sidecar if verdict == "intercepted" else at))
        packets[wire] += counted[0]
        size[wire] += counted[1]
    return {wire: (packets[wire], size[wire]) for wire in packets}
