"""The cgroups of a cluster: one directory of its own in each hierarchy, and nothing beside it.

In a version 1 hierarchy it lies below the cgroup of whoever starts the cluster, so that limits which hold for them hold
for the cluster too.  In version 2 it lies below the root, because a cgroup with processes in it cannot have children
with controllers.  The node sees each directory as the root of its hierarchy (a cgroup namespace).
"""

import errno
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_MOUNTS, _OWN = Path("/proc/self/mountinfo"), Path("/proc/self/cgroup")
_GENERIC_OPTIONS = {"rw", "ro", "xattr", "noprefix", "clone_children"}
_WANTED_BY_KUBELET = ("cpu", "cpuset", "memory", "pids", "io", "hugetlb")
_HAND_ON = "cgroup.subtree_control"
_PATIENCE = 10.0
"""Seconds in which a cgroup whose processes are gone can be removed."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted hierarchy, and the cluster's directory in it."""

    mountpoint: Path
    kind: str
    """What it is mounted as: `cgroup` or `cgroup2`."""
    options: str
    """What selects a version 1 hierarchy at mount(8): its controllers, or its name."""
    directory: Path

    @classmethod
    def parse(cls, line: str, own: dict[str, str], name: str) -> Self | None:
        """Return the hierarchy that a line of mountinfo names, or None; *own* maps options to this process' cgroup.

        >>> line = "36 32 0:33 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu"
        >>> str(Hierarchy.parse(line, {"cpu": "/session"}, "x").directory)
        '/sys/fs/cgroup/cpu/session/x'
        """
        head, _, tail = line.partition(" - ")
        (root, mountpoint), (kind, _, options) = head.split()[3:5], tail.split()[:3]
        if kind not in {"cgroup", "cgroup2"} or not mountpoint.startswith("/sys/fs/cgroup"):
            return None
        if kind == "cgroup2":
            return cls(Path(mountpoint), kind, "", Path(mountpoint, name))
        selects = ",".join(option for option in options.split(",") if option not in _GENERIC_OPTIONS)
        below = Path(own.get(selects, "/")).relative_to("/") if root == "/" else Path()
        return cls(Path(mountpoint), kind, selects, Path(mountpoint, below, name))

    def missing_controllers(self) -> list[str]:
        """Return what the root of a machine with version 2 alone must hand on first, and does not yet."""
        if self.kind != "cgroup2" or self.mountpoint != Path("/sys/fs/cgroup"):
            return []
        there = (self.mountpoint / "cgroup.controllers").read_text().split()
        enabled = (self.mountpoint / _HAND_ON).read_text().split()
        return [name for name in _WANTED_BY_KUBELET if name in there and name not in enabled]

    def make(self) -> None:
        """Make the cluster's directory, fit for processes."""
        hand_on(self.mountpoint, "+", self.missing_controllers())
        self.directory.mkdir()
        for file in ("cpuset.cpus", "cpuset.mems"):  # empty in a new cgroup of version 1, which then takes no process
            inherited = self.directory.parent / file
            if self.kind == "cgroup" and inherited.exists():
                (self.directory / file).write_text(inherited.read_text())


def hierarchies(name: str) -> list[Hierarchy]:
    """Return this machine's hierarchies, with the directory *name* in each."""
    lines = (line.split(":", 2) for line in _OWN.read_text().splitlines())
    own = {controllers: path for _, controllers, path in lines}
    found = (Hierarchy.parse(line, own, name) for line in _MOUNTS.read_text().splitlines())
    return list({hierarchy.mountpoint: hierarchy for hierarchy in found if hierarchy}.values())


def remove(directories: Iterable[Path]) -> None:
    """Remove the trees of *directories*, in which no process is left; OSError if one of them does not go."""
    deadline = time.monotonic() + _PATIENCE
    for directory in directories:
        # Deepest first; a cgroup's files vanish with it.
        for cgroup in sorted((path for path in directory.rglob("*/")), key=lambda path: -len(path.parts)):
            _remove_one(cgroup, deadline)
        if directory.is_dir():
            _remove_one(directory, deadline)


def _remove_one(cgroup: Path, deadline: float) -> None:
    while True:
        try:
            cgroup.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            # The kernel lets go of a dead process' cgroup a moment after the process has been waited for.
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def hand_on(root: Path, sign: str, controllers: Sequence[str]) -> None:
    """Let the children of *root* have *controllers* (`+`), or no longer (`-`)."""
    if controllers:
        (root / _HAND_ON).write_text(" ".join(f"{sign}{name}" for name in controllers))
