"""Cgroups as a container runtime makes them: one below the hierarchy's root for the test, pods and containers in it.

    <cgroup2>/nodeagent-test-PID-N/podUID/CONTAINER

BPF programs of a test go onto the first of them, never onto the root: they see no socket of the machine's.
"""

import itertools
import os
from pathlib import Path
from typing import Self

from tests.lab.process import LabError

_numbers = itertools.count(1)


class Cgroup:
    """One directory of the hierarchy."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> int:
        """What the kernel calls it."""
        return self.path.stat().st_ino

    def child(self, name: str) -> "Cgroup":
        """Return the child *name*, made if it is not there."""
        child = Cgroup(self.path / name)
        child.path.mkdir(exist_ok=True)
        return child

    def join(self, pid: int) -> None:
        """Move a process in here: sockets that it makes from now on are this cgroup's."""
        (self.path / "cgroup.procs").write_text(str(pid))


class TestCgroup(Cgroup):
    """A cgroup for one test, with whatever was made in it; `close` when the processes in it have ended."""

    __test__ = False  # pytest would take it for a class of tests

    def __init__(self) -> None:
        super().__init__(_cgroup2() / f"nodeagent-test-{os.getpid()}-{next(_numbers)}")
        self.path.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it and all below; processes that are left in there move to the hierarchy's root first."""
        for directory, _, _ in os.walk(self.path, topdown=False):
            for pid in (Path(directory) / "cgroup.procs").read_text().split():
                (self.path.parent / "cgroup.procs").write_text(pid)
            Path(directory).rmdir()


class PodCgroups:
    """A pod's cgroup, with an app's container and a sidecar's."""

    def __init__(self, parent: Cgroup, name: str) -> None:
        self.pod = parent.child(f"pod{name}")
        self.app, self.sidecar = self.pod.child("app"), self.pod.child("sidecar")


def _cgroup2() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise LabError("no cgroup v2 hierarchy is mounted: mount one, or boot with systemd.unified_cgroup_hierarchy=1")
