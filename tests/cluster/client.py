"""A cluster as tests see it: our own node, or whatever cluster a kubeconfig names."""

import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Self

from tests.cluster.api import Api, Object
from tests.cluster.build import programs_directory
from tests.cluster.directory import API, CGROUPS, KUBECONFIG, LOGS, NODE, NODE_PID, end, sweep
from tests.cluster.images import BASE_IMAGE
from tests.cluster.surroundings import HOST, NODE_NAME, PROGRAMS
from tests.lab.wire import receive_frame, send_frame

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)
_CHECKOUT = Path(__file__).resolve().parents[2]
_NAMESPACES = {"mount": "mnt", "uts": "uts", "ipc": "ipc", "net": "net", "cgroup": "cgroup", "pid": "pid"}
_PATIENCE = 600.0
"""Seconds for a whole node, on emulated machines; elsewhere it takes ten."""


class ClusterError(Exception):
    """The cluster, not what is tested on it, failed; the message says how, and shows the end of a log."""


class Cluster:
    """Our own single node: `with Cluster() as cluster` brings it up, and leaves nothing behind.

    It ends with the process that made it, however that ends.
    """

    node_name = NODE_NAME
    image = BASE_IMAGE
    """An image with a shell, its tools and Python; see `images`."""

    def __init__(self, directory: Path | None = None) -> None:
        """Prepare a cluster whose files are in *directory*, by default a temporary one; nothing runs yet."""
        self.directory = directory or Path(tempfile.mkdtemp(prefix="nodeagent-cluster-"))
        """Shared with the node: kubeconfig, logs, sockets."""
        self.api = Api(self.directory / API)
        self._namespaces: dict[str, int] = {}
        self._keeper: subprocess.Popen[bytes] | None = None
        self._complaints: IO[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
            self.attach()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ── its life ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, *, owned: bool = True) -> None:
        """Start the node; `attach` waits for it.  Not *owned*: it outlives this process."""
        programs = programs_directory()
        (self.directory / LOGS).mkdir(parents=True)
        command = [sys.executable, "-S", "-m", "tests.cluster.keeper", str(self.directory), str(programs)]
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - outlives the keeper's own files
        self._keeper = subprocess.Popen(
            [*command, str(os.getpid())] if owned else command,
            stdin=subprocess.DEVNULL,
            stdout=self._complaints,
            stderr=self._complaints,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(_CHECKOUT)},
            start_new_session=True,
        )

    def attach(self) -> None:
        """Wait until the node, whoever started it, is ready for pods."""
        deadline = time.monotonic() + _PATIENCE
        while not (self.directory / NODE).exists():
            self._check_keeper()
            if time.monotonic() > deadline:
                raise ClusterError(f"no node in {self.directory}")
            time.sleep(0.02)
        self._ask(op="ready")
        self._open_namespaces()
        self.api.until(f"/api/v1/nodes/{NODE_NAME}", _is_ready_node, _PATIENCE)
        # Made by the controller manager; pods that come earlier are refused.
        self.api.until("/api/v1/namespaces/default/serviceaccounts/default", bool, _PATIENCE)

    def close(self) -> None:
        """End the cluster and wait until nothing of it is left; calling it again is harmless.

        With NODEAGENT_CLUSTER_LOGS set, the components' logs are copied there first.
        """
        if keep := os.environ.get("NODEAGENT_CLUSTER_LOGS"):
            shutil.copytree(self.directory / LOGS, Path(keep, self.directory.name), dirs_exist_ok=True)
        for descriptor in self._namespaces.values():
            os.close(descriptor)
        self._namespaces = {}
        while not end(self.directory, _PATIENCE):
            if self._keeper is None or self._keeper.poll() is not None:
                sweep(self.directory)
                break
            time.sleep(0.02)  # it has only just been started
        if self._keeper:
            self._keeper.wait(_PATIENCE)
        if self._complaints:
            self._complaints.close()

    def _check_keeper(self) -> None:
        if self._keeper and self._complaints and self._keeper.poll() is not None:
            self._complaints.seek(0)
            said = self._complaints.read().decode(errors="replace")
            raise ClusterError(f"the node's keeper ended with {self._keeper.returncode}: {said}")

    # ── its components ────────────────────────────────────────────────────────────────────────────────────────────────

    def components(self) -> dict[str, int]:
        """Return the running components' process ids, as the node has them."""
        answer: dict[str, int] = self._ask(op="pids")
        return answer

    def stop(self, component: str, number: int = signal.SIGTERM) -> int:
        """End *component* by the signal *number*; return its exit code once it has ended."""
        return int(self._ask(op="stop", name=component, signal=int(number)))

    def begin(self, component: str) -> None:
        """Start *component*, which does not run; return when it serves."""
        self._ask(op="start", name=component)

    def restart(self, component: str, number: int = signal.SIGTERM) -> None:
        """End *component* and start it again; return when it serves."""
        self.stop(component, number)
        self.begin(component)

    def log(self, component: str) -> str:
        """Return what *component* has written so far."""
        return (self.directory / LOGS / f"{component}.log").read_text(errors="replace")

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; its server can be reached in the node's network only, see `enter`."""
        return self.directory / KUBECONFIG

    @property
    def cgroup2(self) -> Path:
        """The cluster's directory in the version 2 hierarchy, as the machine has it: the node sees it as the root."""
        directories = map(Path, (self.directory / CGROUPS).read_text().splitlines())
        return next(directory for directory in directories if (directory / "cgroup.controllers").exists())

    @property
    def enter(self) -> tuple[str, ...]:
        """The words to put before a command so that it runs on the node, in all of its namespaces."""
        paths = (f"--{kind}=/proc/{os.getpid()}/fd/{number}" for kind, number in self._namespaces.items())
        return ("nsenter", *paths, "--")

    @property
    def environment(self) -> dict[str, str]:
        """What commands on the node find in their environment: the cluster's programs, and its kubeconfig."""
        path = f"{PROGRAMS}:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "HOME": "/run", "TMPDIR": "/run", "KUBECONFIG": f"{HOST}/{KUBECONFIG}"}

    def attempt(self, command: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run *command* on the node; its exit code and messages are in what is returned."""
        words = [*self.enter, *command]
        return subprocess.run(words, input=stdin, env=self.environment, capture_output=True, text=True, check=False)

    def run(self, command: Sequence[str], stdin: str = "") -> str:
        """Run *command* on the node; return what it printed; ClusterError if it failed."""
        done = self.attempt(command, stdin)
        if done.returncode:
            raise ClusterError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def socket(self) -> socket.socket:
        """Return a TCP socket of the node's network: it was made by a thread that went there."""
        descriptor = self._namespaces["net"]

        def make() -> socket.socket:
            if _libc.setns(descriptor, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "the node's network cannot be entered")
            return socket.socket()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(make).result()

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl as the administrator; return what it printed."""
        return self.run(["kubectl", *arguments], stdin)

    def import_image(self, archive: Path) -> None:
        """Load an OCI or Docker *archive* where kubelet finds it."""
        # By standard input: the node may see another file, or none, at that path.
        command = [*self.enter, str(PROGRAMS / "ctr"), "--namespace", "k8s.io", "images", "import", "--local", "-"]
        with archive.open("rb") as data:
            done = subprocess.run(command, stdin=data, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"importing {archive} ended with {done.returncode}: {done.stderr.strip()}")

    def _open_namespaces(self) -> None:
        """Hold the node's namespaces by descriptors: a process id may be another process' tomorrow."""
        node = int((self.directory / NODE_PID).read_text())
        process = os.pidfd_open(node)
        try:
            opened = {kind: os.open(f"/proc/{node}/ns/{file}", os.O_RDONLY) for kind, file in _NAMESPACES.items()}
            self._namespaces = opened
            if select.select([process], [], [], 0)[0]:
                raise ClusterError(f"the node in {self.directory} has ended")
        finally:
            os.close(process)

    def _ask(self, **question: object) -> Any:  # noqa: ANN401 - JSON, as `Node.answer` defines it
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_PATIENCE)
            try:
                sock.connect(str(self.directory / NODE))
                send_frame(sock, question)
                reply, _ = receive_frame(sock)
            except (OSError, EOFError) as error:
                raise ClusterError(f"the node in {self.directory} gives no answer: {error}") from error
        if "error" in reply:
            raise ClusterError(reply["error"])
        return reply["answer"]


def _is_ready_node(node: Object | None) -> bool:
    conditions = node["status"].get("conditions", ()) if node else ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
