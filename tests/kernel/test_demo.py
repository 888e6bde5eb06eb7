"""The demo leaves nothing behind: no process, no namespace, no file, whenever it is interrupted."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import pytest

from tests.demo.truth import UID

pytestmark = [pytest.mark.kernel, pytest.mark.exhaustive]

PATIENCE = 120.0


class Demo:
    """A demo that runs as in a terminal: in a process group of its own; whatever it starts is known by a mark."""

    def __init__(self, scratch: Path, *arguments: str) -> None:
        self._mark = f"NODEAGENT_TEST_MARK={uuid4()}"
        self.scratch, self._before = scratch, kept()
        name, _, value = self._mark.partition("=")
        environment = os.environ | {name: value, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}
        default = ("env", "--default-signal=INT")  # what runs us may have it ignored, as a shell does for `&`
        self.process = subprocess.Popen(
            [*default, sys.executable, "-m", "tests.demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            process_group=0,
        )

    def says(self, words: str) -> None:
        """Wait until a line holds *words*."""
        assert self.process.stdout
        assert any(words in line for line in self.process.stdout), f"the demo ended before it said {words!r}"

    def has_processes(self, number: int) -> None:
        """Wait until the demo has started so many processes, itself included."""
        deadline = time.monotonic() + PATIENCE
        while len(self.processes()) < number:
            assert time.monotonic() < deadline
            assert self.process.poll() is None

    def processes(self) -> set[int]:
        """Return the demo's processes, whoever their parent and their session is by now."""
        return {int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if self._is_marked(path)}

    def _is_marked(self, environ: Path) -> bool:
        try:
            return self._mark.encode() in environ.read_bytes()
        except OSError:
            return False

    def interrupt(self) -> None:
        """Do what Ctrl-C does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ended(self) -> tuple[int, str]:
        """Return exit code and standard error once it has ended, and hold it to its promise."""
        _, err = self.process.communicate(timeout=PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while left := self.processes():  # a child whose parent has gone ends when it next looks
            assert time.monotonic() < deadline, left
        # A namespace lives in processes, in descriptors, which are processes' too, and in mounts.
        assert kept() == self._before
        assert list(self.scratch.iterdir()) == []
        return self.process.returncode, err


def kept() -> tuple[set[str], ...]:
    """Return what could keep a namespace or a program without a process: mounts, names, pins, cgroups."""
    mounts = {line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "nsfs" in line}
    cgroups = {str(path) for path in Path("/sys/fs/cgroup").glob("**/pod" + UID)}
    return mounts, names(Path("/run/netns")), names(Path("/sys/fs/bpf")), cgroups


def names(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    yield from run(Demo(tmp_path))


@pytest.fixture
def kept_demo(tmp_path: Path) -> Iterator[Demo]:
    yield from run(Demo(tmp_path, "--keep"))


def run(started: Demo) -> Iterator[Demo]:
    try:
        yield started
    finally:
        for pid in started.processes():
            os.kill(pid, signal.SIGKILL)
        started.process.communicate()


def test_the_demo_goes_as_it_says(demo: Demo) -> None:
    assert demo.ended() == (0, "")


def test_a_kept_demo_has_its_page_where_it_said_at_first_until_it_is_interrupted(kept_demo: Demo) -> None:
    assert kept_demo.process.stdout
    found = re.search(r"http://127\.0\.0\.1:\d+/", kept_demo.process.stdout.readline())
    assert found
    kept_demo.says("It stays until Ctrl-C")
    with urlopen(found[0]) as answer:  # noqa: S310  # the demo's own page
        assert b"<title>nodeagent</title>" in answer.read()
    kept_demo.interrupt()
    assert kept_demo.ended() == (0, "")


def programs(demo: Demo) -> None:
    demo.says("$ nodeagent apply")
    demo.has_processes(8)  # two holders, three peers, the command line and its child


Moment = Callable[[Demo], None]
MOMENTS: dict[str, Moment] = {
    "while it makes its first namespace": lambda demo: demo.has_processes(2),
    "while it makes its world": lambda demo: demo.has_processes(4),
    "when all is made": lambda demo: demo.says("A connection is open"),
    "when it begins to program": lambda demo: demo.says("$ nodeagent apply"),
    "while it programs": programs,
    "when rules stand": lambda demo: demo.says("applied"),
    "among its connections": lambda demo: demo.says("excluded_cidr"),
    "after the edit": lambda demo: demo.says("Now 203.0.113.0/24"),
    "while it compares": lambda demo: demo.says("$ nodeagent diff"),
    "while it clears": lambda demo: demo.says("$ nodeagent clear"),
    "between the acts": lambda demo: demo.says("Second act"),
    "while the agent starts": lambda demo: demo.says("$ nodeagent run"),
    "while the agent counts": lambda demo: demo.says("Now the pod talks"),
    "while the agent is held up": lambda demo: demo.says("is held up"),
    "while the ledger is shown": lambda demo: demo.says("$ nodeagent flows"),
    "when it is nearly through": lambda demo: demo.says("$ nodeagent uninstall"),
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_the_demo_leaves_nothing_when_it_is_interrupted(moment: Moment, demo: Demo) -> None:
    moment(demo)
    demo.interrupt()
    code, err = demo.ended()
    assert code == 130, err
    assert err.splitlines()[-1] == "interrupted: everything was removed"
    assert "BrokenPipeError" not in err
