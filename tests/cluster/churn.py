"""Bare sandboxes as fast as the container runtime makes them, over CRI: `python -m tests.cluster.churn`, on the node.

    python -m tests.cluster.churn SECONDS WORKERS '{"nodeagent.io/intercept": "enabled"}'

No kubelet, no API server, no image but the pause container: each worker makes a sandbox in a pod's cgroup, ends it and
makes the next.  What it prints is JSON (`Churned`).  The kubelet has to be stopped: it would end what it does not know.
"""

import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from google.protobuf.message import Message

from nodeagent.nri.schema import message
from tests.cluster.components import CONTAINERD_SOCKET

NAMESPACE: Final = "churn"
_PARENT: Final = "/kubepods/besteffort"
_CGROUPS: Final = Path("/sys/fs/cgroup")
_PATIENCE: Final = 60.0


# The part of k8s.io/cri-api/pkg/apis/runtime/v1/api.proto that makes and ends a sandbox.


@message
class SandboxMetadata(Message):
    """PodSandboxMetadata."""

    name: Annotated[str, 1]
    uid: Annotated[str, 2]
    namespace: Annotated[str, 3]


@message
class LinuxSandbox(Message):
    """LinuxPodSandboxConfig."""

    cgroup_parent: Annotated[str, 1]


@message
class SandboxConfig(Message):
    """PodSandboxConfig."""

    metadata: Annotated[SandboxMetadata, 1]
    hostname: Annotated[str, 2]
    labels: Annotated[MutableMapping[str, str], 6]
    annotations: Annotated[MutableMapping[str, str], 7]
    linux: Annotated[LinuxSandbox, 8]


@message
class RunSandbox(Message):
    """RunPodSandboxRequest."""

    config: Annotated[SandboxConfig, 1]


@message
class Sandbox(Message):
    """RunPodSandboxResponse, StopPodSandboxRequest and RemovePodSandboxRequest."""

    pod_sandbox_id: Annotated[str, 1]


@dataclass
class Churned:
    """What was done: sandboxes, in how many seconds; how long each of them took to be made; what failed."""

    seconds: float = 0.0
    made: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Runtime:
    """The container runtime's CRI."""

    def __init__(self) -> None:
        import grpc  # noqa: PLC0415  # installed for these tests only (requirements/cluster.txt)

        self._channel = grpc.insecure_channel(f"unix://{CONTAINERD_SOCKET}")
        self._make = self._method("RunPodSandbox", Sandbox.FromString)
        self._stop, self._remove = self._method("StopPodSandbox", bytes), self._method("RemovePodSandbox", bytes)

    def _method(self, name: str, read: Callable[[bytes], Any]) -> Callable[[Message], Any]:
        path = f"/runtime.v1.RuntimeService/{name}"
        call = self._channel.unary_unary(path, lambda asked: asked.SerializeToString(), read)
        return lambda asked: call(asked, timeout=_PATIENCE)

    def make(self, uid: str, annotations: MutableMapping[str, str]) -> str:
        """Make a sandbox; return its id."""
        config = SandboxConfig(
            metadata=SandboxMetadata(name=f"bare-{uid}", uid=uid, namespace=NAMESPACE),
            hostname="bare",
            annotations=annotations,
            linux=LinuxSandbox(cgroup_parent=f"{_PARENT}/pod{uid}"),
        )
        made: Sandbox = self._make(RunSandbox(config=config))
        return made.pod_sandbox_id

    def end(self, sandbox: str, uid: str) -> None:
        """End it, and remove what is left of it."""
        for call in (self._stop, self._remove):
            call(Sandbox(pod_sandbox_id=sandbox))
        for folder in _cgroups_of(uid):
            with suppress(OSError):
                folder.rmdir()


def _cgroups_of(uid: str) -> Iterator[Path]:
    """Yield the pod's own directory in every hierarchy that this node may have."""
    for root in (_CGROUPS, *_CGROUPS.iterdir()):
        folder = root / f"{_PARENT[1:]}/pod{uid}"
        if folder.is_dir():
            yield folder


def churn(runtime: Runtime, seconds: float, annotations: MutableMapping[str, str], churned: Churned) -> None:
    """Make and end sandboxes, one after the other, for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        uid, began = str(uuid.uuid4()), time.monotonic()
        try:
            sandbox = runtime.make(uid, annotations)
            churned.made.append(round(time.monotonic() - began, 5))
            runtime.end(sandbox, uid)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is told
            churned.failed.append(str(error)[:300])


def main() -> None:
    """Do what the command line says."""
    seconds, workers, annotations = float(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    runtime, churned, began = Runtime(), Churned(), time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        for _ in range(workers):
            pool.submit(churn, runtime, seconds, annotations, churned)
    churned.seconds = round(time.monotonic() - began, 2)
    print(json.dumps(asdict(churned)))


if __name__ == "__main__":
    main()
