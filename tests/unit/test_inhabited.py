"""Pods' processes in a /proc of another PID namespace, made of files: two numbers in NSpid tell."""

from itertools import count
from pathlib import Path

import pytest

from nodeagent.netns.inhabited import Inhabitants, PodNetns, belongs_to

WEB, API = (PodNetns("/not/looked/at", name) for name in ("8d6a-web", "77aa-api"))
IN_WEB, IN_API = "/kubepods/pod8d6a-web/", "/../../kubepods/burstable/pod77aa-api/"


class Proc:
    """A /proc with these processes in it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        (folder / "self").mkdir()
        (folder / "self/status").write_text("Name:\tpython3\nNSpid:\t4711\t1\n")
        self._seconds = count()
        self.inhabitants = Inhabitants(folder, lambda: float(next(self._seconds)))

    def add(self, pid: int, cgroup: str, head: str = "0::") -> None:
        process = self.path / str(pid)
        process.mkdir(exist_ok=True)
        (process / "cgroup").write_text(f"12:memory:/elsewhere\n{head}{cgroup}\n")

    def of(self, pod: PodNetns) -> list[int]:
        return list(self.inhabitants.of(pod))

    def pass_seconds(self, number: int) -> None:
        for _ in range(number):
            next(self._seconds)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_one_process_of_each_container_is_found(proc: Proc) -> None:
    for pid, cgroup in ((10, "pause"), (11, "app"), (12, "app"), (13, "")):
        proc.add(pid, f"{IN_WEB}{cgroup}")
    proc.add(20, f"{IN_API}app")
    found = proc.of(WEB)
    assert {10, 13} < set(found)
    assert len(found) == 3
    assert proc.of(API) == [20]


@pytest.mark.parametrize(
    ("cgroup", "head"),
    [
        ("/system.slice/containerd.service", "0::"),
        ("/kubepods/burstable", "0::"),
        ("/kubepods/podother/app", "0::"),
        (f"/kubepods/podother/app{IN_WEB}app", "0::"),
        (f"{IN_WEB}app", "3:cpu:"),
        ("", ""),
    ],
    ids=[
        "a service",
        "no pod's",
        "another pod's",
        "another pod's that has made a cgroup of that name",
        "a pod's of version 1",
        "nothing",
    ],
)
def test_others_are_not(proc: Proc, cgroup: str, head: str) -> None:
    proc.add(10, cgroup, head)
    assert proc.of(WEB) == []
    assert not belongs_to(WEB, f"{head}{cgroup}\n")


def test_what_ends_while_it_is_looked_at_is_passed_over(proc: Proc) -> None:
    (proc.path / "9").mkdir()
    proc.add(10, f"{IN_WEB}app")
    assert proc.of(WEB) == [10]


def test_what_was_found_is_kept_until_it_does_not_do(proc: Proc) -> None:
    proc.add(10, f"{IN_WEB}app")
    assert proc.of(WEB) == [10]
    proc.add(11, f"{IN_WEB}more")
    assert next(proc.inhabitants.of(WEB)) == 10, "the likely one first, without a look at all the others"


def test_a_look_at_all_processes_is_followed_by_four_times_its_length_without_one(proc: Proc) -> None:
    """The clock here goes on by a second whenever it is looked at: a look takes one."""
    assert proc.of(WEB) == []
    proc.add(10, f"{IN_WEB}app")
    assert proc.of(WEB) == [], "nobody looks again so soon"
    proc.pass_seconds(4)
    assert proc.of(WEB) == [10]


def test_a_process_that_is_named_comes_first_and_costs_no_look(proc: Proc) -> None:
    named = PodNetns(WEB.cgroup, WEB.name, process=12)
    assert proc.of(WEB) == []
    for pid in (10, 12):
        proc.add(pid, f"{IN_WEB}{pid}")
    assert proc.of(named) == [12], "nobody looks again so soon"
    proc.pass_seconds(4)
    assert proc.of(named) == [12, 10, 12]


def test_our_own_proc_is_told_by_its_one_number() -> None:
    assert Inhabitants(Path("/proc")).is_own
