"""Pods that come and go by the thousand: each is counted, and none leaves anything behind.

``NODEAGENT_CHURN_PODS=N``: that many, instead of some more than a node can count at a time.
"""

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from nodeagent.bpf.counting import detach
from nodeagent.state import HIGHEST_NUMBER
from nodeagent.state.schema import TABLES
from tests.lab import Cgroup, Dial, Netns, Topology
from tests.lab.agent import Manifest, RunningAgent, inject

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(1800)]

PODS = int(os.environ.get("NODEAGENT_CHURN_PODS", str(HIGHEST_NUMBER + 177)))
AT_ONCE = 50
FAR = Dial("203.0.113.10", 443)


@dataclass
class Crowd:
    """An agent, and pods that live for a moment, all in one network namespace that nobody programs."""

    agent: RunningAgent
    lab: Topology
    kubepods: Cgroup
    born: int = 0

    def live(self, count: int) -> list[str]:
        """Let so many pods begin, dial once each, and end; return their names."""
        names = [f"pod-{number}" for number in range(self.born, self.born + count)]
        self.born += count
        groups = [self.kubepods.child(f"pod{name}-uid").child("app") for name in names]
        self.agent.add(*(self._manifest(name) for name in names))
        self.agent.wait(lambda: self._counted(names))
        for group in groups:
            assert self.lab.client.connect(Dial(FAR.dst, FAR.port, cgroup=str(group.path))).verdict == "bypassed"
        self.kubepods.child("nobodys").join(self.lab.pod.pid)
        for name, group in zip(names, groups, strict=True):
            self.agent.remove(name)
            group.path.rmdir()
            group.path.parent.rmdir()
        return names

    def _manifest(self, name: str) -> Manifest:
        return Manifest(name, self.lab.pod.path, {"intercept": "observe"}, f"{name}-uid", {"app": "app"})

    def _counted(self, names: Sequence[str]) -> bool:
        found = {pod["pod"] for pod in self.agent.ask("/api/v1/pods")["pods"] if pod["counted_by"] == "cgroup"}
        return found.issuperset(names)

    def wait_for_the_end(self) -> None:
        """Wait until all pods have ended, and the kernel has their slots back."""
        self.agent.wait(lambda: not self.agent.ask("/api/v1/pods")["pods"])
        self.agent.wait(lambda: self.size()["slots"] == 0)

    def connections(self) -> Counter[str]:
        """Return how many connections the ledger has of each pod."""
        found = Counter[str]()
        offset: int | None = 0
        while offset is not None:
            page = self.agent.ask(f"/api/v1/flows?offset={offset}")
            found.update({flow["pod"]: flow["connections"] for flow in page["flows"]})
            offset = page["next"]
        return found

    def size(self) -> dict[str, float]:
        """Return what might grow."""
        metrics, programmer = self.agent.metrics(), self.agent.programmer_pid
        return {
            "slots": metrics.get('nodeagent_bpf_map_entries{map="slots"}', -1),
            "series": metrics["nodeagent_egress_series"],
            "descriptors": self.agent.descriptors(),
            "descriptors of the programmer": self.agent.descriptors(programmer),
            "memory": self.agent.resident(),
            "memory of the programmer": self.agent.resident(programmer),
        }


def kept(state: Path) -> dict[str, int]:
    """Return how many rows each table of the state has."""
    with closing(sqlite3.connect(state / "state.db")) as db:
        return {table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES}  # noqa: S608


@pytest.fixture
def crowd(tmp_path: Path, kubepods: Cgroup, programs: Path) -> Iterator[Crowd]:
    """Make an agent that was not started yet, and room for pods."""
    agent = RunningAgent(tmp_path, kubepods.path, programs)
    with Topology() as lab, agent.stopping():
        yield Crowd(agent, lab, kubepods.child("kubepods"))
    detach()


def test_more_pods_than_there_are_numbers_are_all_counted(crowd: Crowd) -> None:
    names: list[str] = []
    crowd.agent.start()
    crowd.agent.wait(crowd.agent.counts)
    while len(names) < PODS:
        names += crowd.live(AT_ONCE)
    crowd.wait_for_the_end()
    assert crowd.connections() == Counter(names)
    crowd.agent.stop()
    crowd.agent.start()
    crowd.agent.wait(lambda: crowd.agent.counts() and crowd.agent.flows())
    assert crowd.connections() == Counter(names), "of all pods that have ended, a restart later"
    assert not crowd.agent.troubles()


def test_pods_that_come_and_go_leave_nothing_behind(crowd: Crowd, tmp_path: Path) -> None:
    """Flows and series outlive their pod by ten minutes: here by two seconds, so that they end as fast as they come."""
    path = inject(tmp_path, "from nodeagent.ledger import core\ncore.RETENTION = 2.0\n")
    crowd.agent.before = ("env", f"PYTHONPATH={path}")
    crowd.agent.start()
    crowd.agent.wait(crowd.agent.counts)
    sizes = []
    for _ in range(8):
        crowd.live(8)
        crowd.wait_for_the_end()
        crowd.agent.wait(lambda: not crowd.agent.flows())
        sizes.append(crowd.size())
    for name in sizes[0]:
        room = 1.1 if "memory" in name else 1.0
        assert min(size[name] for size in sizes[-3:]) <= room * max(size[name] for size in sizes[2:4]), (name, sizes)
    crowd.agent.stop()
    assert kept(crowd.agent.state) == dict.fromkeys(TABLES, 0) | {"facts": 2}


def test_a_pod_for_which_there_is_no_number_is_intercepted_and_counted_when_one_is_free(
    crowd: Crowd, tmp_path: Path
) -> None:
    path = inject(tmp_path, "from nodeagent.state import store\nstore.HIGHEST_NUMBER = 1\n")
    crowd.agent.before = ("env", f"PYTHONPATH={path}")
    crowd.agent.start()
    crowd.agent.wait(crowd.agent.counts)
    with Netns() as other:
        crowd.agent.add(Manifest("first", other.path))
        crowd.agent.wait(lambda: crowd.agent.pod("first").get("counted_by"))
        crowd.agent.add(Manifest("second", crowd.lab.pod.path))
        crowd.agent.wait(lambda: crowd.agent.pod("second").get("in_sync"))
        assert crowd.lab.client.connect(FAR).verdict == "intercepted"
        assert crowd.agent.troubles() - {"sidecar"} == {"uncounted"}  # in an empty namespace nobody listens
        crowd.agent.remove("first")
        crowd.agent.wait(lambda: crowd.agent.pod("second")["counted_by"])
        crowd.agent.wait(lambda: not crowd.agent.troubles())
