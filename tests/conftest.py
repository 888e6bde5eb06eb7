"""What all tests share: golden files, and logs that one test's configuration does not take from the next."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
import structlog
from hypothesis import settings

settings.register_profile("no wall clock", deadline=None)
settings.load_profile("no wall clock")

GOLDENS = Path(__file__).parent / "goldens"


class Golden(Protocol):
    """Compare a text with a golden file."""

    def __call__(self, name: str, text: str) -> None:
        """Fail unless ``tests/goldens/NAME`` holds *text*; rewrite it with ``--update-goldens``."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="rewrite the golden files; then read the diff")
    parser.addoption("--update-pictures", action="store_true", help="take the pictures of docs/pictures anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Return the comparison with a golden file."""
    return _update if request.config.getoption("--update-goldens") else _compare


def _update(name: str, text: str) -> None:
    path = GOLDENS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _compare(name: str, text: str) -> None:
    path = GOLDENS / name
    assert path.exists(), f"there is no golden {name}: run `make goldens`, then read the diff"
    assert text == path.read_text(), (
        f"{name} is not what it was: if that is meant, run `make goldens` and read the diff"
    )


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """Forget a configuration of the logs: its stream may end with the test that made it."""
    yield
    structlog.reset_defaults()
