"""SIGKILL at every system call of an apply: old rules or new, and the next apply converges.

``NODEAGENT_KILL_EVERY=N`` kills at each N-th call only: emulated kernels are slow.
"""

import json
import os
import subprocess
import sys
from typing import TypedDict

import pytest

from nodeagent.programmer.seam import Choice
from tests.lab import Netns, strangers_legacy, strangers_nft

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(1800)]


class Result(TypedDict):
    """What the driver found."""

    calls: int
    wrong: list[dict[str, object]]
    states: dict[str, int]
    changed: bool


EVERY = int(os.environ.get("NODEAGENT_KILL_EVERY", "1"))

TRANSITIONS = (
    ("nothing", "default"),
    ("default", "everything_at_once"),
    pytest.param("everything_at_once", "dns_capture", marks=pytest.mark.exhaustive),
    pytest.param("dns_capture_with_exclusions", "exclude_101_ranges", marks=pytest.mark.exhaustive),
)


@pytest.mark.parametrize(("before", "after"), TRANSITIONS, ids=lambda name: name)
def test_a_killed_apply_leaves_old_rules_or_new(
    before: str, after: str, pod: Netns, backend: Choice, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(backend, pod, before, after)
    with capsys.disabled():
        calls, states = result["calls"], result["states"]
        print(f"\n{backend}: {before} -> {after}: killed at {calls} system calls; tables found: {states}")
    assert result["wrong"] == []
    assert calls > 20 // EVERY
    assert result["changed"]
    assert {"old", "new"} <= set(result["states"])


@pytest.mark.fault(24)
def test_strangers_rules_outlive_a_killed_apply(pod: Netns, backend: Choice) -> None:
    (strangers_legacy if backend is Choice.LEGACY else strangers_nft)(pod)
    result = run(backend, pod, "default", "dns_capture")
    assert result["wrong"] == []


def run(backend: Choice, pod: Netns, before: str, after: str) -> Result:
    """Run the driver; return what it found."""
    command = [sys.executable, "-m", "tests.kernel.kill_driver", backend.value, pod.path, before, after, str(EVERY)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: Result = json.loads(done.stdout)
    return result
