"""Two programmers in one namespace: whoever ends last has seen its own rules stand alone."""

import json
import subprocess
import sys
from threading import Barrier, Thread
from typing import Any

import pytest

from nodeagent.compile import compile_policy
from nodeagent.errors import BusyError
from nodeagent.model import Policy
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import Choice, Target
from tests.kernel.conftest import Pod
from tests.lab import Netns

pytestmark = pytest.mark.kernel

RULES = compile_policy(Policy())


def race(pod: Netns, scenario: str) -> Any:  # noqa: ANN401  # it is JSON
    command = [sys.executable, "-m", "tests.kernel.race_driver", pod.path, scenario]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("scenario", "end", "stands"),
    [
        pytest.param("nft: nobody", "applied", {"nft": "ours"}, id="alone by nft"),
        pytest.param("legacy: nobody", "applied", {"legacy": "ours"}, id="alone by legacy"),
        pytest.param("nft: written before us", "applied", {"nft": "ours"}, id="legacy rules came right before ours"),
        pytest.param("nft: written after us", "applied", {"nft": "ours"}, id="legacy rules came right after ours"),
        pytest.param(
            "legacy: written before us",
            "BusyError",
            {"nft": "theirs"},
            id="nft rules came right before ours: they stay",
        ),
        pytest.param(
            "legacy: written after us", "BusyError", {"nft": "theirs"}, id="nft rules came right after ours: they stay"
        ),
        pytest.param(
            "nft: moved away from us", "applied", {"nft": "ours"}, id="ours were replaced by legacy ones: once more"
        ),
        pytest.param(
            "legacy: moved back while we move", "applied", {"legacy": "ours"}, id="both moved, each away from the other"
        ),
        pytest.param(
            "nft: moved away from us each time",
            "BusyError",
            {"legacy": "theirs"},
            id="a rival that never rests makes us give up: its rules stand",
        ),
    ],
)
def test_rules_of_one_backend_stand_in_the_end(scenario: str, end: str, stands: dict[str, str], pod: Netns) -> None:
    found = race(pod, scenario)
    assert found["end"].partition(":")[0] == end
    assert found["stands"] == stands


def test_the_one_who_yields_says_so(pod: Netns) -> None:
    said = race(pod, "legacy: written after us")["end"]
    assert said == (
        "BusyError: another programmer wrote rules by nft meanwhile: they stay, ours by legacy were removed; try again"
    )


@pytest.mark.parametrize(
    ("scenario", "says", "stands"),
    [
        pytest.param(
            "nft: theirs stick",
            "rules by nft are in place and redirect, but removing those by legacy failed: the kernel refuses",
            {"nft": "ours", "legacy": "theirs"},
            id="an apply by nft that cannot remove legacy rules",
        ),
        pytest.param(
            "legacy: theirs stick",
            "rules by legacy are in place and redirect, but removing those by nft failed: the kernel refuses",
            {"nft": "theirs", "legacy": "ours"},
            id="an apply by legacy that cannot remove nft rules",
        ),
        pytest.param(
            "nft: theirs stick, cleared",
            "cannot remove the rules of backend legacy: the kernel refuses; remove is done for backend nft",
            {"legacy": "theirs"},
            id="a clear that cannot remove the second backend's rules",
        ),
    ],
)
def test_what_fails_although_it_was_made_sure_of_is_told(
    scenario: str, says: str, stands: dict[str, str], pod: Netns
) -> None:
    found = race(pod, scenario)
    assert found["end"] == f"KernelError: {says}"
    assert found["stands"] == stands


@pytest.mark.parametrize("start", [None, *Choice], ids=lambda start: f"from {start or 'nothing'}")
def test_two_programmers_at_once_leave_rules_of_one_backend(start: Choice | None, programmer: ChildProgrammer) -> None:
    """Real processes, started at one moment, over and over: one succeeds at least; no redirect is lost or double."""
    with ChildProgrammer() as second:
        for _ in range(15):
            with Netns() as pod:
                if start:
                    Pod(programmer, pod, start).apply(Policy())
                ends = at_once(pod, {programmer: Choice.NFT, second: Choice.LEGACY})
                left = {
                    choice for choice in (Choice.NFT, Choice.LEGACY) if not Pod(second, pod, choice).differs(Policy())
                }
                assert len(left) == 1, ends
                assert None in ends


def at_once(pod: Netns, choices: dict[ChildProgrammer, Choice]) -> list[BusyError | None]:
    """Let each apply in a thread of its own; return how each ended."""
    ends: list[BusyError | None] = []
    barrier = Barrier(len(choices))

    def apply(one: ChildProgrammer, choice: Choice) -> None:
        barrier.wait()
        try:
            one.apply(Target(pod.path), RULES, choice)
        except BusyError as error:
            ends.append(error)
        else:
            ends.append(None)

    threads = [Thread(target=apply, args=pair) for pair in choices.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == len(choices)
    return ends
