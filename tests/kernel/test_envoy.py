"""A real Envoy as the sidecar: what it counted and what we counted, side by side, connection for connection.

Envoy sees what reaches it.  The ledger says the same of that, and the rest besides; whoever was dialled is the third
witness.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from nodeagent.programmer.seam import Choice
from tests.kernel.envoy_kinds import KINDS, REFUSING
from tests.lab import Cgroup, LoadPlan, PodCgroups, Topology
from tests.lab.agent import Manifest, RunningAgent
from tests.lab.envoy import EnvoyCounts, RunningEnvoy

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.exhaustive]

UID = "9f31c6de-uid"
ECHOES = 3
BYPASSED = {"excluded_cidr", "excluded_port", "non_tcp", "impersonated_proxy"}
"""The reasons that the traffic must show; a test of which one is missing shows less than it says."""


@dataclass(frozen=True)
class Scene:
    """A pod whose sidecar is Envoy, and the agent that counts it."""

    lab: Topology
    envoy: RunningEnvoy
    agent: RunningAgent

    def talk(self) -> None:
        """Make the connections of all kinds; several kinds are on their way at a time."""
        with ExitStack() as open_ones:
            for kind in KINDS.values():
                if kind.is_kept:
                    kept = [
                        open_ones.enter_context(self.lab.client.open_connection(kind.dial)) for _ in range(kind.times)
                    ]
                    for connection in kept * ECHOES:
                        connection.echo()
            for uid in (1000, 1337):
                self._load(uid)
            for kind in KINDS.values():
                if kind.dial.proto == "udp":
                    for _ in range(kind.times):
                        assert self.lab.client.connect(kind.dial).verdict == "bypassed"

    def _load(self, uid: int) -> None:
        short = [k for k in KINDS.values() if k.dial.uid == uid and k.dial.proto == "tcp" and not k.is_kept]
        # One target for every fifty connections: in turn, they are mixed.
        targets = [(k.dial.dst, k.dial.port) for k in short for _ in range(k.times // 50)]
        with self.lab.load(LoadPlan(tuple(targets), connections=50 * len(targets), uid=uid, gid=uid)) as load:
            assert len(load.report().records) == 50 * len(targets)

    def ledger(self) -> dict[tuple[str, str, int, str, str, str], int]:
        """Return the connections of each flow: container, address, port, protocol, verdict, reason."""
        names = ("container", "address", "port", "protocol", "verdict", "reason")
        found: Counter[tuple[str, str, int, str, str, str]] = Counter()
        for flow in self.agent.flows():
            container, address, port, protocol, verdict, reason = (flow[name] for name in names)
            found[container, address, port, protocol, verdict, reason] += flow["connections"]
        return dict(found)


@pytest.fixture
def scene(agent: RunningAgent, kubepods: Cgroup, tmp_path: Path, backend: Choice) -> Iterator[Scene]:
    """Program a pod that has a real Envoy."""
    cgroups = PodCgroups(kubepods.child("kubepods"), UID)
    agent.configure(f"backend: {backend}\n")
    excludes = {"excludeOutboundIPRanges": "198.51.100.0/24, 2001:db8:5::/48", "excludeOutboundPorts": "3306"}
    containers = {"app": "app", "sidecar": "istio-proxy"}
    with Topology(cgroups=cgroups) as lab, RunningEnvoy(lab, cgroups.sidecar, tmp_path) as envoy:
        lab.refuse("tcp", REFUSING)
        agent.add(Manifest("web", lab.pod.path, excludes, UID, containers))
        agent.settle()
        agent.wait(lambda: agent.pod("web")["counted_by"] == "cgroup")
        yield Scene(lab, envoy, agent)


def test_what_envoy_counted_is_what_we_say_was_intercepted_and_the_rest_bypassed_it(scene: Scene) -> None:
    scene.talk()
    envoy = scene.envoy.settle()
    ledger = scene.ledger()

    def ours(verdict: str, protocol: str = "") -> int:
        return sum(n for key, n in ledger.items() if key[4] == verdict and key[3] in (protocol or key[3]))

    # Envoy's two sums are ours.
    assert envoy == EnvoyCounts(ours("intercepted"), ours("proxy"), envoy.refused, open=0)
    # What Envoy did not see is what the world saw, less what Envoy sent there.
    world = Counter(event.proto for event in scene.lab.outside.events())
    refused, answered = scene.lab.refusals(), world["tcp"]
    assert ours("bypassed", "tcp") == answered + refused - envoy.upstream
    assert ours("bypassed", "udp") == world["udp"]
    # And each kind, on its own, is what was dialled: nothing is missing, nothing is beside it.
    assert {key: n for key, n in ledger.items() if key[0] == "app"} == {
        ("app", k.dial.dst, k.dial.port, k.dial.proto, k.verdict, k.reason): k.times for k in KINDS.values()
    }
    # None of these sums is empty: each is a claim about thousands of connections, or hundreds.
    by_reason = Counter({key[5]: 0 for key in ledger})
    for key, n in ledger.items():
        by_reason[key[5]] += n
    assert envoy.accepted > 2000
    assert envoy.refused > 0
    assert refused > envoy.refused
    assert all(by_reason[reason] > 0 for reason in BYPASSED)
