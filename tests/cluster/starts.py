"""Pods that dial in their first millisecond, and the one that they dial, who writes down who came unproxied."""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tests.cluster.client import Cluster
from tests.cluster.pods import Pods
from tests.cluster.surroundings import HOST, NODE_V4

PORT: Final = 7780
PATIENCE: Final = 180.0
CHECKOUT: Final = Path(__file__).resolve().parents[2]
_FOLDER: Final = "starts"
_PROGRAM: Final = Path(__file__).with_name("first.c")
_RECORDS = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=1024) as server, open(sys.argv[3], "a") as file:
    print("listening", flush=True)
    while True:
        peer, _ = server.accept()
        with peer:
            said = b""
            while part := peer.recv(256):
                said += part
            print(said.decode(), len(said), file=file, flush=True)
"""


@dataclass(frozen=True)
class Start:
    """How a pod's first connections went; `gap` is the seconds until somebody refused one."""

    name: str
    accepted: int
    sent: int
    gap: float


class Starts:
    """The program that pods start with, and the recorder, on *node*; `annotations` are those of all pods."""

    def __init__(self, node: Cluster, annotations: Mapping[str, str]) -> None:
        self._node, self._annotations = node, dict(annotations)
        self._folder = node.directory / _FOLDER
        self._recorder: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir()
        self._folder.chmod(0o777)
        subprocess.run(["gcc", "-O2", "-static", "-o", str(self._folder / "first"), str(_PROGRAM)], check=True)
        command = [sys.executable, "-c", _RECORDS, NODE_V4, str(PORT), str(HOST / _FOLDER / "unproxied")]
        self._recorder = subprocess.Popen([*self._node.enter, *command], stdout=subprocess.PIPE, text=True)
        assert self._recorder.stdout
        assert self._recorder.stdout.readline() == "listening\n"
        return self

    def __exit__(self, *_: object) -> None:
        if self._recorder:
            # nsenter waits for its child: what ends the child ends both.
            children = Path(f"/proc/{self._recorder.pid}/task/{self._recorder.pid}/children").read_text().split()
            subprocess.run(["kill", *children], check=True)
            self._recorder.communicate(timeout=PATIENCE)
        shutil.rmtree(self._folder)

    def body(
        self, name: str, annotations: Mapping[str, str] | None = None, init: Sequence[object] = ()
    ) -> dict[str, object]:
        """Return a pod that dials at once, after its *init* containers."""
        shared = str(HOST / _FOLDER)
        program = [f"{shared}/first", NODE_V4, str(PORT), name, f"{shared}/{name}"]
        main = {
            "name": "main",
            "image": self._node.image,
            "imagePullPolicy": "Never",
            "command": program,
            "securityContext": {"runAsUser": 1000},
            "volumeMounts": [{"name": "starts", "mountPath": shared}],
        }
        spec = {
            "nodeName": self._node.node_name,
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "initContainers": list(init),
            "containers": [main],
            "volumes": [
                {"name": "starts", "hostPath": {"path": shared}},
                {"name": "checkout", "hostPath": {"path": str(CHECKOUT)}},
            ],
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "annotations": {**self._annotations, **(annotations or {})}},
            "spec": spec,
        }

    def begin(
        self,
        pods: Pods,
        names: Iterable[str],
        annotations: Mapping[str, str] | None = None,
        init: Sequence[object] = (),
    ) -> None:
        """Create the pods, all at once."""
        for name in names:
            self._node.api.create(f"/api/v1/namespaces/{pods.namespace}/pods", self.body(name, annotations, init))

    def wait(self, names: Iterable[str]) -> list[Start]:
        """Wait until each of them was refused; return how that went."""
        deadline = time.monotonic() + PATIENCE
        return [self._read(name, deadline) for name in names]

    def shared(self, name: str) -> tuple[dict[str, list[dict[str, object]]], str]:
        """Return what lets a pod write to the file *name*, and that file's path in the pod."""
        folder = str(HOST / _FOLDER)
        mount: dict[str, object] = {"name": "starts", "mountPath": folder}
        volume: dict[str, object] = {"name": "starts", "hostPath": {"path": folder}}
        return {"volumeMounts": [mount], "volumes": [volume]}, f"{folder}/{name}"

    def said(self, name: str) -> str:
        """Wait until a pod has written the file *name*; return what."""
        deadline = time.monotonic() + PATIENCE
        while not (self._folder / name).exists():
            assert time.monotonic() < deadline, f"nobody ever wrote {name}"
            time.sleep(0.02)
        return (self._folder / name).read_text()

    def forget(self, name: str) -> None:
        """Forget how the pod's start went: it is about to start again."""
        (self._folder / name).unlink()

    def end(self, pods: Pods, names: Iterable[str]) -> None:
        """Delete the pods, and wait until they have gone."""
        paths = [f"/api/v1/namespaces/{pods.namespace}/pods/{name}" for name in names]
        for path in paths:
            self._node.api.delete(path)
        for path in paths:
            self._node.api.until(path, lambda pod: pod is None)

    def unproxied(self) -> tuple[Counter[str], Counter[str]]:
        """Return connections and bytes that arrived without a proxy, by the name that they carried."""
        connections, sizes = Counter[str](), Counter[str]()
        file = self._folder / "unproxied"
        for line in file.read_text().splitlines() if file.exists() else ():
            name, size = line.split()
            connections[name] += 1
            sizes[name] += int(size)
        return connections, sizes

    def _read(self, name: str, deadline: float) -> Start:
        while not (self._folder / name).exists():
            assert time.monotonic() < deadline, f"{name} was never refused"
            time.sleep(0.02)
        accepted, sent, gap, why = map(int, (self._folder / name).read_text().split())
        assert why == errno.ECONNREFUSED, f"{name} met no sidecar's port, but: {os.strerror(why)}"
        return Start(name, accepted, sent, gap / 1e6)
