"""The commands of the quick start that need root, in order, in a namespace of the lab: they print what it shows."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.docs.console import ROOT, Command, commands, files
from tests.lab import Cgroup, Dial, Netns, PodCgroups, Topology
from tests.lab.agent import RunningAgent

pytestmark = [pytest.mark.kernel, pytest.mark.exhaustive]

PAGE = Path("docs/quick-start.md")
ALL = [command for command in commands(PAGE) if command.line.startswith("nodeagent")]
AGENT = next(number for number, command in enumerate(ALL) if command.line.startswith("nodeagent run"))
ALONE, WITH_AGENT = ALL[:AGENT], ALL[AGENT + 1 :]
UID = "b8d0c1aa-uid"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a directory with the page's files."""
    for name, text in files(PAGE).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def check(command: Command, folder: Path, *more: str, pid: int = 0) -> None:
    """Run a command of the page; it must print what the page shows."""
    words = [str(pid) if word == "4711" else word for word in shlex.split(command.line)]
    done = subprocess.run(
        [sys.executable, "-m", *words, *more],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    assert done.returncode == command.code, done.stderr
    assert command.is_printed(done.stdout), done.stdout


def test_the_page_has_both_kinds() -> None:
    assert len(ALONE) >= 8
    assert [command.line.split()[1] for command in WITH_AGENT] == ["flows", "status", "explain"]


def test_one_namespace(folder: Path, pod: Netns) -> None:
    for command in ALONE:
        check(command, folder, pid=pod.pid)


@pytest.fixture
def talking(agent: RunningAgent, kubepods: Cgroup, folder: Path) -> Iterator[RunningAgent]:
    """Run the agent on the page's pod, with the traffic that the page speaks of."""
    cgroups = PodCgroups(kubepods.child("kubepods"), UID)
    with Topology(cgroups=cgroups) as lab:
        document = yaml.safe_load((folder / "pod.yaml").read_text())
        document["metadata"]["uid"] = UID
        document["metadata"]["annotations"]["nodeagent.io/netns"] = lab.pod.path
        document["status"] = {
            "containerStatuses": [
                {"name": "app", "containerID": "containerd://app"},
                {"name": "istio-proxy", "containerID": "containerd://sidecar"},
            ]
        }
        agent.write("pod.yaml", yaml.safe_dump(document))
        agent.settle()
        agent.wait(lambda: agent.pod("web")["counted_by"])
        traffic = (
            (Dial("198.51.100.20", 443), 2),
            (Dial("203.0.113.10", 443), 3),
            (Dial("203.0.113.10", 443, "udp"), 1),
        )
        for dial, times in traffic:
            for _ in range(times):
                lab.client.connect(dial)
        yield agent


def test_the_agent(talking: RunningAgent, folder: Path) -> None:
    for command in WITH_AGENT:
        check(command, folder, "--api", talking.api_at)
