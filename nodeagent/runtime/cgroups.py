"""Pods and containers by their cgroup v2 directories, whoever made them.

The kubelet names a pod's directory after its UID (a static pod's after its configuration's hash), the
runtime a container's after its ID, each in one of two ways:

    cgroupfs   kubepods[/burstable|/besteffort]/pod<UID>/<ID>
    systemd    kubepods.slice[/kubepods-burstable.slice]/kubepods-burstable-pod<UID, with _>.slice/crio-<ID>.scope

all of it below another directory where the kubelet has a ``--cgroup-root``.  On hybrid nodes the same lies below
``/sys/fs/cgroup/unified``.  A directory's inode number is what BPF calls the cgroup's ID.

Promises to read nothing but names, and never to leave *root*: a UID or an ID with a slash in it finds nothing.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

NETNS_PATH: Final = "/var/run/netns"
"""Where runtimes keep network namespaces by name, unless told otherwise."""
_SERVICE_CLASSES: Final = ("", "burstable", "besteffort")
_CGROUP_ROOTS: Final = ("", "kubelet")
"""``kubelet`` is kind's and minikube's."""
_SAFE_RE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SCOPE_RE: Final = re.compile(r"(?:[a-z-]+-)?([A-Za-z0-9]+)\.scope")
_POD_RE: Final = re.compile(r"(?:[a-z-]+-)?pod[A-Za-z0-9_.-]+")
_CACHED_NAMES: Final = 512
_MONITOR: Final = "conmon-"
"""CRI-O's own process beside a container."""


@dataclass(frozen=True, slots=True)
class PodCgroup:
    """A pod's cgroup: its directory, and the ID that BPF knows it by."""

    path: Path
    id: int


def mounted() -> Path | None:
    """Return where cgroup v2 is mounted here; None where it is not."""
    with Path("/proc/self/mounts").open(encoding="utf-8", errors="replace") as mounts:
        found = [line.split()[1] for line in mounts if line.split()[2] == "cgroup2"]
    return Path(min(found, key=len)) if found else None


def version_2(directory: Path) -> Path:
    """Return where cgroup v2 is, of what a node has at ``/sys/fs/cgroup``: on hybrid nodes below it."""
    hybrid = directory / "unified"
    return (
        hybrid if (hybrid / "cgroup.procs").exists() and not (directory / "cgroup.controllers").exists() else directory
    )


def find_pod(root: Path, *names: str) -> PodCgroup | None:
    """Return the cgroup below *root* of the pod that one of *names* (UID, hash) is the name of.

    None if it has none there: it may not have been made yet, or the node has no cgroup v2.
    """
    for name in filter(_SAFE_RE.fullmatch, names):
        for place in _places(name):
            try:
                return PodCgroup(root / place, (root / place).stat().st_ino)
            except OSError:
                continue
    return None


def _places(uid: str) -> Iterator[str]:
    for root in _CGROUP_ROOTS:
        for service in _SERVICE_CLASSES:
            yield "/".join(filter(None, (root, "kubepods", service, f"pod{uid}")))
            yield _slices(*filter(None, (root, "kubepods", service, f"pod{uid.replace('-', '_')}")))


def pod_places(root: Path) -> list[str]:
    """Return the directories below *root* that pods' directories are made in, those that are there."""
    parents = {(root / place).parent for place in _places("0")}
    return sorted(str(parent) for parent in parents if parent.is_dir())


def names_pod(directory: str, name: str) -> bool:
    """Say whether a cgroup's *directory* is that of the pod *name* (UID or hash), in either driver's spelling.

    >>> names_pod("kubepods-burstable-pod1_2.slice", "1-2"), names_pod("pod1-2", "1-2"), names_pod("pod1-23", "1-2")
    (True, True, False)
    """
    return directory in directories_of(name)


@lru_cache(_CACHED_NAMES)
def directories_of(name: str) -> frozenset[str]:
    """Return what the cgroup directory of the pod *name* (UID or hash) may be called.

    >>> sorted(directories_of("1-2"))[:2]
    ['kubelet-kubepods-besteffort-pod1_2.slice', 'kubelet-kubepods-burstable-pod1_2.slice']
    """
    return frozenset(place.rpartition("/")[2] for place in _places(name)) if name else frozenset()


def is_pods(directory: str) -> bool:
    """Say whether a cgroup's *directory* is some pod's.

    >>> is_pods("kubepods-burstable-pod1_2.slice"), is_pods("pod1-2"), is_pods("kubepods"), is_pods("burstable")
    (True, True, False, False)
    """
    return bool(_POD_RE.fullmatch(directory))


def _slices(*names: str) -> str:
    """Return nested slices as systemd names them: each carries the names of all above it.

    >>> _slices("kubepods", "burstable", "pod1")
    'kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice'
    """
    return "/".join("-".join(names[: n + 1]) + ".slice" for n in range(len(names)))


def find_containers(pod: PodCgroup) -> dict[int, str]:
    """Return the containers of *pod* that have a cgroup: the runtime's ID by the cgroup's."""
    found: dict[int, str] = {}
    try:
        entries = list(pod.path.iterdir())
    except OSError:
        return found
    for entry in entries:
        if name := container_id(entry.name):
            try:
                if entry.is_dir():
                    found[entry.stat().st_ino] = name
            except OSError:
                continue  # it ended meanwhile
    return found


def container_id(directory: str) -> str | None:
    """Return the container ID in the name of a cgroup directory, None if it is no container's.

    >>> [container_id(name) for name in ("4f2a", "cri-containerd-4f2a.scope", "crio-conmon-4f2a.scope", "x.slice")]
    ['4f2a', '4f2a', None, None]
    """
    if _MONITOR in directory or directory.endswith((".slice", ".service", ".mount")):
        return None
    scope = _SCOPE_RE.fullmatch(directory)
    if scope:
        return scope[1]
    return directory if _SAFE_RE.fullmatch(directory) and "." not in directory else None


def name_containers(found: Mapping[int, str], names: Mapping[str, str]) -> dict[int, str]:
    """Return what to call the containers *found*: by *names* of IDs, or the ID cut as runtimes cut it.

    >>> name_containers({7: "4f2a", 8: "0123456789abcdef"}, {"4f2a": "app"})
    {7: 'app', 8: '0123456789ab'}
    """
    return {cgroup: names.get(container, container[:12]) for cgroup, container in found.items()}
