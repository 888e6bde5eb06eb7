"""A namespace that the runtime keeps is opened by its name: /proc/PID/ns/net would wait for an exec(2)."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.lab import Netns

pytestmark = pytest.mark.kernel

VISITOR = """
import sys
from nodeagent.errors import NodeagentError
from nodeagent.netns import home
by_process, open_path = [], home._open_path
home._open_path = lambda *words: by_process.append(words) or open_path(*words)
visitor = home.Home(kept=sys.argv[1])
for line in sys.stdin:
    try:
        with visitor.visit(int(line)) as place:
            print(place.identity[1], len(by_process), flush=True)
    except NodeagentError as error:
        print(error, flush=True)
"""
"""Visits processes' namespaces; says which each is, and how many were opened by the process so far."""


class Visitor:
    """A process that visits others' namespaces, and is told of those that are kept in *folder*."""

    def __init__(self, folder: Path, stdin: IO[str], stdout: IO[str]) -> None:
        self.folder, self._stdin, self._stdout = folder, stdin, stdout

    def keep(self, name: str, netns: Netns | None) -> None:
        """Let *name* stand for a namespace, or for nothing any more."""
        (self.folder / name).unlink(missing_ok=True)
        if netns:
            (self.folder / name).symlink_to(netns.path)

    def visit(self, process: int) -> str:
        """Return what the visit of a process's namespace found."""
        print(process, file=self._stdin, flush=True)
        return self._stdout.readline().strip()


@contextmanager
def visiting(folder: Path) -> Iterator[Visitor]:
    command = [sys.executable, "-c", VISITOR, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        yield Visitor(folder, process.stdin, process.stdout)
        process.stdin.close()


@pytest.fixture
def visitor(tmp_path: Path) -> Iterator[Visitor]:
    with visiting(tmp_path) as visitor:
        yield visitor


@pytest.fixture
def other() -> Iterator[Netns]:
    with Netns() as netns:
        yield netns


def test_a_kept_namespace_is_opened_by_its_name(visitor: Visitor, pod: Netns, other: Netns) -> None:
    visitor.keep("one", pod)
    assert visitor.visit(pod.pid) == f"{pod.inode} 0"
    visitor.keep("two", other)
    assert visitor.visit(other.pid) == f"{other.inode} 0"
    assert visitor.visit(pod.pid) == f"{pod.inode} 0"


def test_one_that_nobody_keeps_is_opened_by_its_process(visitor: Visitor, pod: Netns, other: Netns) -> None:
    visitor.keep("one", other)
    assert visitor.visit(pod.pid) == f"{pod.inode} 1"


def test_a_name_that_stands_for_another_one_meanwhile_leads_nobody_astray(
    visitor: Visitor, pod: Netns, other: Netns
) -> None:
    visitor.keep("one", pod)
    assert visitor.visit(pod.pid) == f"{pod.inode} 0"
    visitor.keep("one", other)
    assert visitor.visit(pod.pid) == f"{pod.inode} 1"
    assert visitor.visit(other.pid) == f"{other.inode} 1"


def test_what_is_no_namespace_is_passed_over(visitor: Visitor, pod: Netns) -> None:
    (visitor.folder / "file").touch()
    (visitor.folder / "gone").symlink_to("/nowhere")
    os.mkfifo(visitor.folder / "fifo")
    visitor.keep("one", pod)
    assert visitor.visit(pod.pid) == f"{pod.inode} 0"


def test_a_place_where_nothing_is_kept_is_no_trouble(tmp_path: Path, pod: Netns) -> None:
    with visiting(tmp_path / "none") as visitor:
        assert visitor.visit(pod.pid) == f"{pod.inode} 1"


def test_the_hosts_namespace_is_refused_although_it_is_kept(visitor: Visitor, pod: Netns) -> None:
    (visitor.folder / "host").symlink_to(f"/proc/{os.getpid()}/ns/net")
    assert "is the host's network namespace" in visitor.visit(os.getpid())
    visitor.keep("one", pod)
    assert visitor.visit(pod.pid).startswith(f"{pod.inode} ")
