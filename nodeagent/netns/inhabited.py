"""The network namespace of a pod of a cluster: the one that its processes live in.

A pod's cgroup leads to its processes, the sandbox's among them.  What a process says of itself is believed only
where its own cgroup, read while a descriptor holds it, names the pod.  Nothing here enters anything.

A container without the host's PID namespace (``hostPID: false``) is told of no process by a cgroup: the kernel
writes 0 for what has no number in the reader's own.  But the host's ``/proc``, mounted there, shows them all, by
the host's numbers.  So there all processes are looked at, at once for all pods, and what was found is kept: it is
a hint, and proven whenever it is used.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from nodeagent.runtime.cgroups import directories_of, is_pods, names_pod

_MOST_CGROUPS: Final = 64
_MOST_KEPT: Final = 10_000
_V2: Final = "0::"
_SHARE: Final = 4
"""How much longer nobody looks at all processes than that took: a fifth of a core at most."""
_LONGEST: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class PodNetns:
    """The network namespace of the pod *name*, its UID or its hash, whose cgroup v2 directory is *cgroup*.

    *kept* is the directory in which the container runtime keeps namespaces by name.  Where no address of
    the pod is known yet, its namespace has to be one of those, and to have an address at all.
    *process* is one of the pod's, as somebody says who should know: it is looked at first, and proven like any other.
    """

    cgroup: str
    name: str
    kept: str = ""
    process: int | None = None

    def __str__(self) -> str:
        return f"the network namespace of pod {self.name}"


class Inhabitants:
    """The processes of pods, by the numbers that they have below *proc*."""

    def __init__(self, proc: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """*proc* is a ``/proc``: our own, or another one that shows us as well."""
        self._proc, self._clock = proc, clock
        self.is_own = _is_own(proc)
        """Whether processes have the numbers there that they have for us."""
        self._found: dict[str, dict[str, int]] = {}
        self._not_before = 0.0

    def of(self, pod: PodNetns) -> Iterator[int]:
        """Yield one process of each of the pod's containers, the sandbox included; the likely ones first."""
        if pod.process:
            yield pod.process
        yield from _by_cgroup(pod) if self.is_own else self._by_process(pod)

    def _by_process(self, pod: PodNetns) -> Iterator[int]:
        known = self._known(pod)
        yield from known
        if self._clock() >= self._not_before:
            self._look()
            yield from sorted(set(self._known(pod)) - set(known))

    def _known(self, pod: PodNetns) -> list[int]:
        return [pid for name in directories_of(pod.name) for pid in self._found.get(name, {}).values()]

    def _look(self) -> None:
        """Look at every process: which pod's cgroup it is in, if any; the first one of each container will do."""
        began = self._clock()
        self._found = {}
        for entry in os.listdir(self._proc):  # noqa: PTH208  # thousands of them: no Path for each
            if entry.isdigit():
                for path in _paths(_read(f"{self._proc}/{entry}/cgroup")):
                    if directory := _pods_directory(path):
                        self._found.setdefault(directory, {}).setdefault(path, int(entry))
        ended = self._clock()
        self._not_before = ended + _SHARE * (ended - began)


def _is_own(proc: Path) -> bool:
    """Say whether *proc* shows our own PID namespace: in another one that shows us, we have several numbers.

    Where the kernel does not say (``NSpid``, since Linux 4.1), it is.
    """
    lines = _read(f"{proc}/self/status").splitlines()
    return all(len(line.split()) == 2 for line in lines if line.startswith("NSpid:"))  # noqa: PLR2004  # name, number


def _by_cgroup(pod: PodNetns) -> Iterator[int]:
    files = islice(Path(pod.cgroup).rglob("cgroup.procs"), _MOST_CGROUPS)
    for file in sorted(files):
        try:
            with file.open(encoding="ascii") as lines:
                process = int(lines.readline() or 0)
        except OSError:
            continue  # it ended meanwhile, or holds threads only
        if process:  # 0: one that our process namespace does not show
            yield process


def _read(path: str) -> str:
    """Return a file of /proc; empty if its process has ended."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, _LONGEST).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def _paths(cgroups: str) -> Iterator[str]:
    return (line.removeprefix(_V2) for line in cgroups.splitlines() if line.startswith(_V2))


def belongs_to(pod: PodNetns, cgroups: str) -> bool:
    r"""Say whether a process whose ``/proc/PID/cgroup`` says *cgroups* is one of the pod's.

    >>> belongs_to(PodNetns("/sys/fs/cgroup/kubepods/pod1-2", "1-2"), "0::/kubepods/besteffort/pod1-2/4f2a\\n")
    True
    """
    return any(names_pod(_pods_directory(path), pod.name) for path in _paths(cgroups))


def _pods_directory(path: str) -> str:
    """Return the outermost directory of *path* that is a pod's, if any: what lies below it that pod may have made."""
    return next(filter(is_pods, path.split("/")), "")


def kept_namespaces(directory: str) -> frozenset[tuple[int, int]]:
    """Return device and inode of all namespaces that are kept by name in *directory*."""
    found: set[tuple[int, int]] = set()
    try:
        for entry in islice(os.scandir(directory), _MOST_KEPT):
            with suppress(OSError):  # it goes at this moment
                about = entry.stat()
                found.add((about.st_dev, about.st_ino))
    except OSError:
        return frozenset()
    return frozenset(found)
