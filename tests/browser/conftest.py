"""What the browser tests share: a small node with an agent, and Chromium beside it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

from nodeagent.bpf.counting import detach
from tests.browser.chromium import chromium
from tests.browser.screen import Screen, looking
from tests.browser.stage import Stage, staged
from tests.lab import Cgroup, TestCgroup
from tests.lab.mounts import use_private_mounts

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"


@pytest.fixture(scope="session", autouse=True)
def surroundings() -> Iterator[None]:
    """Mounts and an xtables lock of our own: the machine's would be changed, and would block others."""
    use_private_mounts()
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTABLES_LOCKFILE", os.fspath(Path(directory) / "xtables.lock"))
        yield


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where all agents of a session keep what they compiled."""
    folder = tmp_path_factory.mktemp("programs")
    folder.chmod(0o700)
    return folder


@pytest.fixture(scope="session")
def node() -> Iterator[Cgroup]:
    """Make a cgroup that stands for the node's."""
    with TestCgroup() as cgroup:
        yield cgroup


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory, node: Cgroup, programs: Path) -> Iterator[Stage]:
    """Build the scene that most tests look at; they may add to what was said, and change nothing else."""
    with staged(tmp_path_factory.mktemp("agent"), node, programs) as built:
        yield built
    detach()


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    """Start what drives browsers; there can be one in a process."""
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="session")
def browser(playwright: Playwright, stage: Stage) -> Iterator[Browser]:
    """Run a browser beside the agent."""
    with chromium(playwright, stage.place) as running:
        yield running


@pytest.fixture
def screen(browser: Browser, stage: Stage) -> Iterator[Screen]:
    """Open a tab; afterwards nothing may have gone wrong in it."""
    with looking(browser, stage.url) as opened:
        yield opened


@pytest.fixture
def pictures(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return where pictures go: the README's place, if that was asked for."""
    kept: Path = PICTURES if request.config.getoption("--update-pictures") else tmp_path
    kept.mkdir(parents=True, exist_ok=True)
    return kept
