"""The node: `python -m tests.cluster.node DIRECTORY PROGRAMS`, in new namespaces and cgroups, as process 1.

Process 1 only waits: for its one child, and for the orphans that the kernel gives it (shims, mostly).  When it ends,
the kernel ends every process of the node.  The child makes the node's surroundings, brings the components up, and then
does what is asked at `DIRECTORY/node`, one frame of JSON for each question and each answer (see `Node.answer`).
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.cluster import images
from tests.cluster.cgroups import Hierarchy, hierarchies
from tests.cluster.components import (
    PAUSE_IMAGE,
    PKI,
    components,
    write_configurations,
)
from tests.cluster.directory import KUBECONFIG, LOGS, NODE
from tests.cluster.pki import make_certificates
from tests.cluster.supervisor import ComponentError, Supervisor
from tests.cluster.surroundings import HOST, NODE_NAME, PROGRAMS, STATE, make_network, mount_node, move_to_leaf
from tests.lab.wire import receive_frame, send_frame

PATIENCE = 240.0
"""Seconds for one component to serve: for emulated machines; elsewhere it takes a few."""


def main() -> None:
    """Be process 1."""
    child = os.fork()
    if child == 0:
        try:
            _serve_node(Path(sys.argv[1]), Path(sys.argv[2]))
        finally:
            os._exit(1)
    while os.wait()[0] != child:
        pass


def _serve_node(directory: Path, programs: Path) -> None:
    """Make the node and answer questions about it, for ever."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory / NODE}.new")
        listener.listen()
        Path(f"{directory / NODE}.new").rename(directory / NODE)  # who finds it is answered
        found = hierarchies("")  # looked for before the mounts change
        node = Node(Supervisor(components(), HOST / LOGS))
        threading.Thread(target=node.bring_up, args=(directory, programs, found)).start()
        while True:
            asking, _ = listener.accept()
            threading.Thread(target=node.converse, args=(asking,)).start()


class Node:
    """What is asked of the node from outside."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._finished, self._failure = threading.Event(), ""

    def bring_up(self, directory: Path, programs: Path, found: list[Hierarchy]) -> None:
        """Bring everything up, from mounts to kubelet; `ready` tells how it went."""
        try:
            self._prepare(directory, programs, found)
            self._start_all()
        except (OSError, ComponentError, images.ImageError, subprocess.SubprocessError) as error:
            self._failure = str(error) or repr(error)
        finally:
            self._finished.set()

    def converse(self, asking: socket.socket) -> None:
        """Answer the questions of one connection until it ends."""
        with asking, suppress(EOFError, ConnectionError):
            while True:
                request, _ = receive_frame(asking)
                try:
                    send_frame(asking, {"answer": self.answer(request)})
                except (OSError, ComponentError) as error:
                    send_frame(asking, {"error": str(error)})

    def answer(self, request: dict[str, Any]) -> object:
        """Do what *request* asks for; ComponentError if that failed."""
        match request:
            case {"op": "ready"}:
                self._finished.wait()
                if self._failure:
                    raise ComponentError(f"the node did not come up: {self._failure}")
                return None
            case {"op": "pids"}:
                return self._supervisor.pids()
            case {"op": "start", "name": name}:
                self._supervisor.start(name)
                self._supervisor.wait_until_healthy(name, PATIENCE)
                return None
            case {"op": "stop", "name": name, "signal": number}:
                return self._supervisor.stop(name, number, PATIENCE)
        raise ComponentError(f"not a question: {request}")

    def _prepare(self, directory: Path, programs: Path, found: list[Hierarchy]) -> None:
        mount_node(directory, programs, found)
        move_to_leaf(found)
        make_network()
        socket.sethostname(NODE_NAME)
        make_certificates(PKI)
        write_configurations()
        shutil.copy(PKI / "admin.kubeconfig", HOST / KUBECONFIG)

    def _start_all(self) -> None:
        """Start the components, each as soon as it can make use of its time, and load the images meanwhile."""
        for name in ("etcd", "kube-apiserver", "containerd"):
            self._supervisor.start(name)
        with ThreadPoolExecutor() as pool:
            loading = pool.submit(self._load_images)
            self._supervisor.wait_until_healthy("kube-apiserver", PATIENCE)
            # kubelet asks containerd at once, and gives up if there is no answer.
            self._supervisor.wait_until_healthy("containerd", PATIENCE)
            later = ("kubelet", "api-socket", "kube-controller-manager", "kube-scheduler")
            for name in later:
                self._supervisor.start(name)
            for name in later:
                self._supervisor.wait_until_healthy(name, PATIENCE)
            loading.result()

    def _load_images(self) -> None:
        pause, base = STATE / "pause.tar", STATE / "base.tar"
        images.write_program_image(pause, PAUSE_IMAGE, PROGRAMS / "pause")
        images.write_debian_image(base, images.BASE_IMAGE)
        self._supervisor.wait_until_healthy("containerd", PATIENCE)
        for archive in (pause, base):
            command = [str(PROGRAMS / "ctr"), "--namespace", "k8s.io", "images", "import", "--local", str(archive)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ComponentError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
            archive.unlink()


if __name__ == "__main__":
    main()
