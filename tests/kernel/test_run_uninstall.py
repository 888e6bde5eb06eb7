"""``nodeagent uninstall`` leaves the node as it was, with an agent before or without."""

import subprocess
from pathlib import Path

import pytest

from tests.lab import Dial, Topology, legacy_save, nft_save, strangers_nft
from tests.lab.agent import NODEAGENT, Manifest, RunningAgent

pytestmark = pytest.mark.kernel

FAR = Dial("203.0.113.10", 443)
PINS = Path("/sys/fs/bpf/nodeagent")


class Uninstall:
    """Runs the command, and lets it see the processes of one pod only: the machine's others are not its business."""

    def __init__(self, agent: RunningAgent, folder: Path, pod: int) -> None:
        self._places, self._proc = agent.places, folder / "proc"
        self._proc.mkdir()
        (self._proc / str(pod)).symlink_to(f"/proc/{pod}")

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*NODEAGENT, "uninstall", *self._places, "--proc", str(self._proc), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_leaves_the_node_as_it_was_and_may_be_run_again(agent: RunningAgent, lab: Topology, tmp_path: Path) -> None:
    strangers_nft(lab.pod)
    before = legacy_save(lab.pod), nft_save(lab.pod)
    uninstall = Uninstall(agent, tmp_path, lab.pod.pid)
    agent.add(Manifest("web", lab.pod.path))
    agent.settle()
    assert PINS.exists()
    while_running = uninstall()
    assert while_running.returncode == 4
    assert "another agent" in while_running.stderr
    agent.stop()
    done = uninstall()
    assert done.returncode == 0, done.stderr
    assert (legacy_save(lab.pod), nft_save(lab.pod)) == before
    assert not PINS.exists()
    assert not agent.state.exists()
    assert uninstall().returncode == 0


def test_it_drains_first(agent: RunningAgent, lab: Topology, tmp_path: Path) -> None:
    uninstall = Uninstall(agent, tmp_path, lab.pod.pid)
    agent.add(Manifest("web", lab.pod.path))
    agent.settle()
    with lab.client.open_connection(FAR) as through:
        agent.stop()
        done = uninstall("--drain-timeout", "0.5")
        assert done.returncode == 1
        assert "1 intercepted connections are open" in done.stderr
        assert through.echo() == "sidecar"
        assert lab.client.connect(FAR).verdict == "bypassed"
    assert uninstall("--now").returncode == 0
    assert nft_save(lab.pod) == {}
