"""The network namespace of a pod of a cluster: the one that its processes live in.

A pod's cgroup leads to its processes, the sandbox's among them.  What a process says of itself is believed only
where its own cgroup, read while a pidfd holds it, names the pod.  Nothing here enters anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from nodeagent.runtime.cgroups import names_pod

_MOST_CGROUPS: Final = 64
_V2: Final = "0::"


@dataclass(frozen=True, slots=True)
class PodNetns:
    """The network namespace of the pod *name*, its UID or its hash, whose cgroup v2 directory is *cgroup*."""

    cgroup: str
    name: str

    def __str__(self) -> str:
        return f"the network namespace of pod {self.name}"


def inhabitants(pod: PodNetns) -> Iterator[int]:
    """Yield one process of each of the pod's containers, the sandbox included."""
    files = islice(Path(pod.cgroup).rglob("cgroup.procs"), _MOST_CGROUPS)
    for file in sorted(files):
        try:
            with file.open(encoding="ascii") as lines:
                process = int(lines.readline() or 0)
        except OSError:
            continue  # it ended meanwhile, or holds threads only
        if process:  # 0: one that our process namespace does not show
            yield process


def belongs_to(pod: PodNetns, cgroups: str) -> bool:
    r"""Say whether a process whose ``/proc/PID/cgroup`` says *cgroups* is one of the pod's.

    >>> belongs_to(PodNetns("/sys/fs/cgroup/kubepods/pod1-2", "1-2"), "0::/kubepods/besteffort/pod1-2/4f2a\\n")
    True
    """
    paths = (line.removeprefix(_V2) for line in cgroups.splitlines() if line.startswith(_V2))
    return any(names_pod(part, pod.name) for path in paths for part in path.split("/"))
