"""The table of what counting is held to names tests that are there, all of them, and that run on old kernels too."""

import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from tests.cases.scenarios import ROWS, Row
from tests.kernel import test_counting

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def module_of(file: str) -> ModuleType:
    return import_module(file.removesuffix(".py").replace("/", "."))


def marks(file: str, name: str) -> set[str]:
    """Return the names of the marks of a test."""
    return {mark.name for mark in getattr(getattr(module_of(file), name), "pytestmark", ())}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.says)
def test_a_row_is_a_test(row: Row) -> None:
    assert row.scenarios or row.tests
    assert set(row.scenarios) <= {scenario.id for scenario in test_counting.SCENARIOS}
    assert bool(row.elsewhere) == any("exhaustive" in marks(*test) for test in row.tests)


def test_every_scenario_is_in_the_table_once() -> None:
    told = [name for row in ROWS for name in row.scenarios]
    assert sorted(told) == sorted(scenario.id for scenario in test_counting.SCENARIOS)


def test_old_kernels_run_the_files_of_all_rows() -> None:
    (selected,) = re.findall(r"^QEMU_TESTS\s*\?= (.*)$", MAKEFILE.read_text(encoding="utf-8"), re.MULTILINE)
    files = {"tests/kernel/test_counting.py", *(file for row in ROWS for file, _ in row.tests)}
    assert files <= set(selected.split())
