"""What the pages say: commands can be typed, files understood, links followed, and what is shown is what is printed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from nodeagent.cli.arguments import build_parser
from nodeagent.cli.capabilities import CAPABILITIES
from nodeagent.files.manifest import read_pods
from nodeagent.plugin.command import build_parser as build_plugin_parser
from nodeagent.policy import read_configuration, resolve
from tests.docs.console import PAGES, ROOT, Command, commands, files

QUICK_START = Path("docs/quick-start.md")
COMMANDS = [command for page in PAGES for command in commands(page)]
WITHOUT_ROOT = [c for c in commands(QUICK_START) if re.match(r"nodeagent (policy|explain -f|render)", c.line)]
TARGETS = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
OTHERS = {"kubectl", "helm"}
"""Programs whose commands are theirs to check; the cluster's tests run them."""

LINK_RE = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
CODE_RE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_can_be_typed(command: Command) -> None:
    words = shlex.split(command.line.removesuffix(" &"))
    match words:
        case ["nodeagent", *arguments]:
            build_parser().parse_args(arguments)
        case ["kubectl", "nodeagent", *arguments]:
            build_plugin_parser().parse_args(arguments)
        case ["make", *targets]:
            assert {target for target in targets if "=" not in target} <= TARGETS
        case [program, *_]:
            assert program in OTHERS


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 30
    assert len(WITHOUT_ROOT) == 4


@pytest.mark.parametrize("page", [page for page in PAGES if files(page)], ids=str)
def test_files_are_understood_without_a_warning(page: Path) -> None:
    found = files(page)
    assert found.keys() <= {"config.yaml", "pod.yaml"}
    configuration = read_configuration(found.get("config.yaml", ""))
    assert configuration.warnings == ()
    for pod in read_pods(found["pod.yaml"], "pod.yaml") if "pod.yaml" in found else ():
        resolution = resolve(pod.annotations, configuration)
        assert (resolution.warnings, resolution.rejected) == ((), ())


@pytest.mark.parametrize("command", WITHOUT_ROOT, ids=str)
def test_the_quick_start_prints_what_it_shows(command: Command, tmp_path: Path) -> None:
    for name, text in files(QUICK_START).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    words = [sys.executable, "-m", *shlex.split(command.line)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (command.code, "")
    assert command.is_printed(done.stdout), done.stdout


# -- links ---------------------------------------------------------------------------------------


def links(page: Path) -> list[str]:
    text = CODE_RE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return [link for link in LINK_RE.findall(text) if not re.match(r"https?://|mailto:", link)]


def anchors(path: Path) -> set[str]:
    """Return the names by which a page's headings are linked, as GitHub makes them."""
    text = CODE_RE.sub(lambda found: "" if found[0].startswith("```") else found[0], path.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (ROOT / page.parent / unquote(name)).resolve() if name else ROOT / page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_first() -> None:
    reached, left = set[Path](), [ROOT / "docs" / "index.md"]
    while left:
        path = left.pop().resolve()
        if path in reached or path.suffix != ".md" or not path.exists():
            continue
        reached.add(path)
        left += [
            path.parent / unquote(link.partition("#")[0]) for link in links(path.relative_to(ROOT)) if link[0] != "#"
        ]
    pages = {ROOT / page for page in PAGES if page.parts[0] == "docs"}
    assert pages - reached == set()


def test_operations_names_the_capabilities_that_are_needed_and_why() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (.+) \|$", text, re.MULTILINE))
    assert rows == {name: needed.why for name, needed in CAPABILITIES.items()}


def test_the_commands_of_a_page_are_told_from_what_they_print() -> None:
    shown = Command("", "", "A  B\n...\nlast ...\n")
    assert shown.is_printed("A    B\nx\ny\nlast word\n")
    assert shown.is_printed("A B\nlast\n") is False
    assert shown.is_printed("A C\nlast word\n") is False
