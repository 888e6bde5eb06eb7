"""A pod as a source describes it: what the API server, or a manifest in a file, says of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from nodeagent.model.network import Address


@dataclass(frozen=True, slots=True)
class Container:
    """A container that runs as long as its pod does; ``uid`` and ``gid`` are None where its image decides.

    Native sidecars (init containers that are always restarted) are such, other init containers are not.
    """

    name: str
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True)
class PodManifest:
    """What a manifest says about one Pod; what it leaves out is empty.

    ``uid`` and ``pod_ips`` are the API server's to give and mostly missing in files that people
    write.  ``netns`` is the path that the annotation ``nodeagent.io/netns`` gives.  ``containers``
    maps IDs, as the runtime gave them, to names; ``config_hash`` stands for the UID in the cgroups
    of a static pod.  ``sidecars`` are names of containers, as the annotation
    ``nodeagent.io/sidecarContainers`` gives them.  ``running`` are the containers of its
    specification, ``init`` the names of those that end before they start, ``labels`` those that
    were asked for.  ``is_over`` says that nothing runs in it any more.  ``process`` is the PID of its
    sandbox, where the runtime gives one.
    """

    name: str
    namespace: str = "default"
    uid: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    pod_ips: tuple[Address, ...] = ()
    host_network: bool = False
    netns: str | None = None
    containers: Mapping[str, str] = field(default_factory=dict)
    config_hash: str = ""
    sidecars: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    running: tuple[Container, ...] = ()
    init: tuple[str, ...] = ()
    is_over: bool = False
    process: int | None = None


class PodKey(NamedTuple):
    """What makes a pod the same pod: another UID or netns is another one."""

    namespace: str
    name: str
    uid: str
    netns: str

    @classmethod
    def of(cls, pod: PodManifest) -> "PodKey":
        """Return the key of *pod*."""
        return cls(pod.namespace, pod.name, pod.uid, pod.netns or "")

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All pods of a source, and what could not be understood, by file or pod.

    ``is_current`` says that the source would have told of a change by now.
    """

    pods: Mapping[PodKey, PodManifest]
    problems: Mapping[str, str] = field(default_factory=dict)
    is_current: bool = True
