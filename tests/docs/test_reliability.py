"""Each fault of docs/reliability.md has the tests that the page names, and no other test claims to show it."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.docs.console import ROOT

TESTS: Final = ROOT / "tests"
ROW_RE: Final = re.compile(r"^\| (\d+) \|.*\| ([^|]*) \|$", re.MULTILINE)
WANTED: Final = {*range(6, 19), *range(20, 23), 24, *range(30, 34), 38}
"""Faults that an agent in a cluster has to show."""


def named() -> dict[int, set[str]]:
    """Return the files that the page names, by row."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    return {int(row): set(re.findall(r"`([^`]+)`", files)) for row, files in ROW_RE.findall(text)}


def marked() -> dict[int, set[str]]:
    """Return the files that have a test with the row's mark."""
    found = defaultdict[int, set[str]](set)
    for path in TESTS.rglob("test_*.py"):
        for row in _rows(path):
            found[row].add(str(path.relative_to(TESTS)))
    return dict(found)


def _rows(path: Path) -> Iterator[int]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    assert isinstance(mark.args[0], ast.Constant)
                    yield int(str(mark.args[0].value))


def test_every_fault_has_the_tests_that_the_page_names() -> None:
    assert marked() == named()


def test_every_fault_that_a_cluster_has_is_there() -> None:
    assert named().keys() == WANTED
