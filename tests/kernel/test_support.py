"""`nodeagent support` beside a running agent, and beside none."""

import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nodeagent.errors import UnreachableError
from tests.lab.agent import NODEAGENT, Manifest, RunningAgent

pytestmark = [pytest.mark.kernel, pytest.mark.slow]


def collect(folder: Path, api: str, metrics: str) -> tuple[subprocess.CompletedProcess[str], dict[str, bytes]]:
    """Return how it ended, and what is in the archive."""
    target = folder / "support.tar.gz"
    places = ("--api", api, "--metrics", metrics, "--state-dir", str(folder), "--bpffs", str(folder))
    command = (*NODEAGENT, "support", "-f", str(target), "-o", "json", *places)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert target.stat().st_mode & 0o777 == 0o600
    with tarfile.open(target) as found:
        read = {member.name.partition("/")[2]: found.extractfile(member) for member in found.getmembers()}
        return done, {name: data.read() for name, data in read.items() if data}


def load(found: dict[str, bytes], name: str) -> Any:  # noqa: ANN401  # it is JSON
    return json.loads(found[name])


def test_it_holds_what_the_agent_says_and_no_secret(agent: RunningAgent, tmp_path: Path) -> None:
    agent.configure("ranges: {payments: [10.20.0.0/16]}\n")
    agent.add(Manifest("web", annotations={"excludeOutboundPorts": "99999", "token": "password=hunter2"}))
    agent.wait(lambda: agent.pod("web").get("rejected"))
    done, found = collect(tmp_path, agent.api_at, agent.metrics_at)
    assert done.returncode == 0, done.stderr
    (web,) = load(found, "agent/status.json")["pods"]
    assert web["rejected"][0]["key"] == "nodeagent.io/excludeOutboundPorts"
    assert "payments" in load(found, "agent/config.json")["settings"]["ranges"]
    assert "ready" in load(found, "agent/ready.json")
    assert b"nodeagent_build_info" in found["agent/metrics.txt"]
    assert "kernel" in {finding["what"] for finding in load(found, "doctor.json")}
    assert load(found, "about.json")["kernel"] == os.uname().release
    assert "agent/flows.json" not in found
    assert b"hunter2" not in b"".join(found.values())


def test_without_an_agent_it_collects_the_rest_and_says_so(tmp_path: Path) -> None:
    done, found = collect(tmp_path, "127.0.0.1:1", "127.0.0.1:1")
    assert done.returncode == UnreachableError.exit_code
    assert "agent/status.json: no agent answers at 127.0.0.1:1" in done.stderr
    assert {"about.json", "doctor.json", "system/mounts"} <= found.keys()
