"""``docs/reference`` is what the code says, all of it, and nothing else."""

import subprocess
import sys

import pytest

from docs.source.annotations import MEANINGS, OTHERS
from docs.source.cli import commands
from docs.source.configuration import EFFECTS, EXAMPLE, keys
from docs.source.http import routes
from docs.source.metrics import CONDITIONAL, families
from docs.source.pages import HOME, generated
from nodeagent.model import Reason
from nodeagent.policy import read_configuration
from nodeagent.policy.dialects import CANONICAL, DIALECTS, Field

PAGES = generated()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_it_is_generated(name: str) -> None:
    assert (HOME / name).read_text(encoding="utf-8") == PAGES[name], "run `make reference`, and read the diff"


def test_no_page_is_left_of_something_that_is_gone() -> None:
    assert {path.name for path in HOME.iterdir()} == set(PAGES)


def test_every_annotation_is_described() -> None:
    assert set(MEANINGS) == set(Field)
    assert set(OTHERS) == DIALECTS[CANONICAL].not_ours
    known = {key for dialect in DIALECTS.values() for key in (*dialect.fields, *dialect.not_ours)}
    assert {key for key in known if f"`{key}`" not in PAGES["annotations.md"]} == set()


def test_every_key_of_the_configuration_is_described_and_no_other() -> None:
    found = [path for path, _, _ in keys()]
    assert set(found) == set(EFFECTS)
    assert len(found) == len(set(found))


def test_the_example_is_a_configuration() -> None:
    assert read_configuration(EXAMPLE).warnings == ()


def test_every_metric_has_a_line_and_every_exception_is_one() -> None:
    names = [family.name for family in families()]
    assert set(CONDITIONAL) < set(names)
    assert [PAGES["metrics.md"].count(f"| `{name}` |") for name in names] == [1] * len(names)


@pytest.mark.parametrize("name", commands())
def test_a_command_says_what_its_section_says(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nodeagent", name, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "100", "PATH": "/usr/bin:/bin"},
    )
    assert f"## {name}\n\n```text\n{done.stdout.rstrip()}\n```" in PAGES["cli.md"]


def test_every_route_has_a_line() -> None:
    paths = {route.resource.canonical for _, route, _ in routes() if route.resource}
    assert {"/metrics", "/healthz", "/readyz", "/", "/api/v1/flows"} <= paths
    assert {path for path in paths if f"| `{path}` |" not in PAGES["http.md"]} == set()


def test_every_reason_can_be_looked_up() -> None:
    concepts = (HOME.parent / "concepts.md").read_text(encoding="utf-8")
    assert {reason.value for reason in Reason if f"`{reason.value}`" not in concepts} == set()
