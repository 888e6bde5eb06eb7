"""The agent on the test cluster's node: `nodeagent run --kubernetes`, in all of the node's namespaces."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.cluster.client import Cluster
from tests.cluster.pods import Pod

PATIENCE = 60.0
FOLDER = Path("/run/agent")
"""On the node, whose /run is its own."""
CONFIGURATION = """\
kubernetes: {startJitterSeconds: 0}
mode: observe
http: {metrics: "127.0.0.1:9640"}
"""


class _Connection(http.client.HTTPConnection):
    """A connection that is made in the node's network."""

    def __init__(self, node: Cluster, port: int) -> None:
        super().__init__("127.0.0.1", port, timeout=10)
        self._node = node

    def connect(self) -> None:
        """Connect with a socket of the node's."""
        self.sock = self._node.socket()
        self.sock.settimeout(self.timeout)
        self.sock.connect((self.host, self.port))


class NodesAgent:
    """`nodeagent run --kubernetes`, in all of the node's namespaces, at the product's own ports."""

    def __init__(self, node: Cluster, log: Path, configuration: str = CONFIGURATION, *options: str) -> None:
        self._node, self._log = node, log
        self._configuration = configuration
        self.options = options
        self.python_path: tuple[str, ...] = (str(Path(__file__).resolve().parents[2]),)
        """Where it finds Python modules: this checkout, and what a test puts before it."""
        self._process: subprocess.Popen[bytes] | None = None
        self._said = ""

    def __enter__(self) -> Self:
        self._node.run(["mkdir", "-p", "-m", "700", str(FOLDER / "state"), str(FOLDER / "bpf")])
        self._node.run(["mount", "-t", "bpf", "bpf", str(FOLDER / "bpf")])
        self.configure(self._configuration)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)
        self._node.run(["sh", "-c", f"rm -r {FOLDER}/bpf/*; umount {FOLDER}/bpf; rm -r {FOLDER}"])

    def configure(self, text: str) -> None:
        """Replace the configuration, as an edit does."""
        self._node.run(["sh", "-c", f"cat > {FOLDER}/new && mv {FOLDER}/new {FOLDER}/config.yaml"], text)

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._node.enter,
                    *(sys.executable, "-m", "nodeagent", "--log-level", "debug", "--log-format", "json", "run"),
                    "--kubernetes",
                    *("--node", self._node.node_name, "--config", str(FOLDER / "config.yaml")),
                    *("--state-dir", str(FOLDER / "state"), "--bpffs", str(FOLDER / "bpf")),
                    *self.options,
                ],
                env={**self._node.environment, "PYTHONPATH": ":".join(self.python_path)},
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a group of its own to the scheduler, as a container has
            )
        self.wait(self._is_ready)

    def _is_ready(self) -> bool:
        try:
            status, self._said = self._ask("/readyz", 9640)
        except OSError as error:
            status, self._said = 0, str(error)
        return status == http.client.OK

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it."""
        if self._process and self._process.poll() is None:
            os.kill(self.pid, number)
            self._process.wait(PATIENCE)
        self._process = None

    def wait(self, holds: Callable[[], object], patience: float = PATIENCE) -> None:
        """Wait until *holds*; what the agent says tells of no end."""
        deadline = time.monotonic() + patience
        while not holds():
            assert self._process
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._said + self._log.read_text()[-6000:]
            time.sleep(0.02)

    def get(self, path: str, port: int = 9641) -> str:
        """Return what it answers."""
        status, text = self._ask(path, port)
        assert status == http.client.OK, text
        return text

    def _ask(self, path: str, port: int) -> tuple[int, str]:
        connection = _Connection(self._node, port)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    @property
    def is_running(self) -> bool:
        """Whether it was started, and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id, out here: nsenter waits for the agent, its one child."""
        assert self._process
        (child,) = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(child)

    def pod(self, pod: Pod) -> dict[str, Any]:
        """Return what it says of a pod; empty if it says nothing."""
        return next((entry for entry in self.pods() if entry["uid"] == pod.uid), {})

    def pods(self) -> list[dict[str, Any]]:
        """Return what it says of all pods."""
        found: list[dict[str, Any]] = json.loads(self.get("/api/v1/pods"))["pods"]
        return found

    def flows(self, **wanted: str) -> list[dict[str, Any]]:
        """Return the flows with these values."""
        query = "&".join(f"{name}={value}" for name, value in wanted.items())
        found: list[dict[str, Any]] = json.loads(self.get(f"/api/v1/flows?{query}"))["flows"]
        return found

    def metrics(self) -> dict[str, float]:
        """Return its metrics: values by name and labels, as they are written."""
        lines = (line for line in self.get("/metrics", 9640).splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return what it, or one before it, logged under this name."""
        lines = (line for line in self._log.read_text(encoding="utf-8").splitlines() if line.startswith("{"))
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def is_settled(self, pod: Pod, *, after: int = 0) -> bool:
        """Say whether the pod is in sync, in an epoch later than *after*."""
        said = self.pod(pod)
        return bool(said.get("in_sync") and said["epoch"] and said["epoch"] % 2 == 0 and said["epoch"] > after)
