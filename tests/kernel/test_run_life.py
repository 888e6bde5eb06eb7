"""The agent's own life: stopped, killed, started twice, robbed of its programmer."""

import json
import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.kernel.conftest import Opener
from tests.lab import Dial, Netns, Topology
from tests.lab.agent import NODEAGENT, Manifest, RunningAgent

pytestmark = pytest.mark.kernel

FAR = Dial("203.0.113.10", 443)


def goes_direct(lab: Topology, port: int) -> bool:
    """Say whether connections to *port* bypass the sidecar."""
    return lab.client.connect(Dial("203.0.113.10", port)).verdict == "bypassed"


def are_observed(agent: RunningAgent, names: list[str]) -> bool:
    """Say whether all of these pods are."""
    return all(agent.pod(name).get("state") == "observed" for name in names)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_it_stops_cleanly_and_the_rules_stay(agent: RunningAgent, lab: Topology, open_to: Opener, number: int) -> None:
    agent.add(Manifest("web", lab.pod.path))
    agent.settle()
    through = open_to(lab.client, FAR)
    programmer = agent.programmer_pid
    assert agent.stop(number) == 0
    assert not Path(f"/proc/{programmer}").exists()
    assert through.echo() == "sidecar"
    assert lab.client.connect(FAR).verdict == "intercepted"


def test_a_restart_changes_nothing_in_the_kernel(agent: RunningAgent, lab: Topology) -> None:
    agent.add(Manifest("web", lab.pod.path))
    epoch = agent.settle()
    before = lab.pod.run(["nft", "-a", "list", "ruleset"])
    agent.stop()
    agent.start()
    agent.settle()
    assert lab.pod.run(["nft", "-a", "list", "ruleset"]) == before
    assert agent.pod("web")["epoch"] == epoch
    assert agent.pod("web")["repairs"] == 0


def test_pods_that_are_in_order_after_a_restart_are_neither_told_nor_asked_again(
    agent: RunningAgent, lab: Topology
) -> None:
    with Netns() as other, Netns() as drifted:
        pods = {"web": lab.pod, "other": other, "drifted": drifted}
        agent.add(*(Manifest(name, netns.path) for name, netns in pods.items()))
        epochs = {name: agent.settle(name) for name in pods}
        agent.stop()
        drifted.nft("flush ruleset")
        agent.start()
        for name in pods:
            agent.settle(name)
        agent.wait(lambda: all(agent.pod(name)["counted_by"] for name in pods))
        asked = [
            event for event in agent.events("done") if event["verb"] in {"observe", "apply", "interfaces", "watch"}
        ]
        assert {event["netns"] for event in asked} == {drifted.path}
        assert sum(event["verb"] == "enrol" for event in agent.events("done")) <= 1  # an epoch of the flushed one
        assert {name: agent.pod(name)["epoch"] for name in ("web", "other")} == {n: epochs[n] for n in ("web", "other")}
        assert lab.client.connect(FAR).verdict == "intercepted"
        other.nft("flush ruleset")  # it is heard of, although nobody asked about this pod by itself
        agent.wait(lambda: agent.pod("other")["repairs"] == 1)


def test_what_changed_while_it_was_away_is_made_good(agent: RunningAgent, lab: Topology) -> None:
    agent.add(Manifest("web", lab.pod.path), Manifest("away", "/proc/self/ns/nothing"))
    epoch = agent.settle()
    agent.stop()
    agent.add(Manifest("web", lab.pod.path, {"excludeOutboundPorts": "443"}))
    agent.start()
    agent.settle(after=epoch)
    assert lab.client.connect(FAR).verdict == "bypassed"
    agent.stop()
    agent.remove("web")
    agent.start()
    agent.wait(lambda: "nodeagent" not in lab.pod.run(["nft", "list", "ruleset"]))
    agent.wait(lambda: not agent.pod("web"))


def test_killed_again_and_again_it_goes_on_where_it_was(agent: RunningAgent, lab: Topology, open_to: Opener) -> None:
    agent.add(Manifest("web", lab.pod.path))
    agent.settle()
    through = open_to(lab.client, FAR)
    for excluded in ("444", "445", "446"):
        agent.add(Manifest("web", lab.pod.path, {"excludeOutboundPorts": excluded}))
        agent.kill()  # somewhere on the way
        agent.start()
        agent.wait(agent.is_settled)
        agent.wait(partial(goes_direct, lab, int(excluded)))
        assert through.echo() == "sidecar"
        assert lab.client.connect(FAR).verdict == "intercepted"


def test_a_programmer_that_dies_is_started_again(agent: RunningAgent, lab: Topology) -> None:
    agent.add(Manifest("web", lab.pod.path))
    epoch = agent.settle()
    for _ in range(3):
        dead = agent.programmer_pid
        os.kill(dead, signal.SIGKILL)
        agent.add(Manifest("web", lab.pod.path, {"excludeOutboundPorts": "443"}))
        epoch = agent.settle(after=epoch)
        agent.wait(agent.counts)
        assert agent.programmer_pid != dead
        lab.pod.nft("flush ruleset")
        agent.wait(lambda: lab.client.connect(Dial("203.0.113.10", 444)).verdict == "intercepted")
        agent.add(Manifest("web", lab.pod.path))
        epoch = agent.settle(after=epoch)


@pytest.mark.fault(38)
def test_the_second_agent_of_a_node_says_so_and_goes(agent: RunningAgent) -> None:
    command = [*NODEAGENT, "run", "--pods-dir", str(agent.pods_dir), *agent.places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert f"process {agent.pid}" in done.stderr
    assert agent.get("/healthz", inner=False) == (200, "ok\n")
    assert not agent.troubles(), "to the first one it is nothing"
    doctor = [*NODEAGENT, "doctor", "-o", "json", *agent.places, "--api", "127.0.0.1:9"]
    found = json.loads(subprocess.run(doctor, capture_output=True, text=True, check=False).stdout)
    (told,) = (fact["detail"] for fact in found if fact["what"] == "agent")
    assert told.startswith(f"process {agent.pid} is at work here, and a second one refuses to start; no agent answers")


def test_state_that_cannot_be_written_is_told_and_stops_nothing(
    tmp_path: Path, agent: RunningAgent, lab: Topology
) -> None:
    agent.stop()
    (tmp_path / "file").write_text("in the way")
    agent.state = tmp_path / "file" / "state"
    agent.add(Manifest("web", lab.pod.path))
    agent.start()
    agent.wait(lambda: agent.pod("web").get("in_sync"))
    assert "state" in agent.troubles()
    assert agent.get("/readyz", inner=False)[0] == 503
    assert lab.client.connect(FAR).verdict == "intercepted"


def test_state_that_was_lost_leaves_no_pod_uncounted(agent: RunningAgent, lab: Topology, pod: Netns) -> None:
    """The kernel holds numbers that the state no longer knows of: another pod would be given them, and wait."""
    agent.add(Manifest("z", lab.pod.path))
    agent.wait(lambda: agent.pod("z").get("counted_by"))
    agent.add(Manifest("a", pod.path))
    agent.wait(lambda: agent.pod("a").get("counted_by"))
    agent.kill()
    (agent.state / "state.db").unlink()
    agent.start()
    agent.wait(lambda: all(agent.pod(name).get("counted_by") for name in "az"))
    assert not agent.events("not counted yet")


def test_pods_that_come_and_go_leave_nothing_behind(agent: RunningAgent) -> None:
    """Hundreds here; the same namespaces again and again, as a node's."""
    with Netns() as one, Netns() as two:
        sizes = []
        for turn in range(40):
            names = [f"pod-{turn}-{n}" for n in range(4)]
            for n, name in enumerate(names):
                agent.add(Manifest(name, (one if n % 2 else two).path, {"intercept": "observe"}))
            agent.wait(partial(are_observed, agent, names))
            for name in names:
                agent.remove(name)
            agent.wait(lambda: not agent.ask("/api/v1/pods")["pods"])
            sizes.append((agent.descriptors(), agent.descriptors(agent.programmer_pid)))
        assert max(sizes[-10:]) <= max(sizes[:10]), sizes
        assert agent.resident() < 80 << 20
