"""The DaemonSet's pod on the one node: what the kernel says of its containers, and what its agent says."""

import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

from tests.cluster.pods import Pod
from tests.cluster.product import NAMESPACE, Product

CONTAINERS = ("agent", "programmer")
INNER, OUTER = 9641, 9640
_GETS = """
import sys, urllib.request
for path in sys.argv[2:]:
    sys.stdout.write(urllib.request.urlopen(sys.argv[1] + path, timeout=10).read().decode())
"""
_PROBE = """
import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen(sys.argv[1], timeout=10)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status, answer.read().decode())
"""


class Daemon:
    """That pod of *product*."""

    def __init__(self, product: Product) -> None:
        self.product, self.node = product, product.node

    # ── as Kubernetes has it ──────────────────────────────────────────────────────────────────────────────────────────

    def pod(self) -> dict[str, Any]:
        """Return the one that is to stay; empty while there is none."""
        found: list[dict[str, Any]] = self.node.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
        return next((pod for pod in found if "deletionTimestamp" not in pod["metadata"]), {})

    def container(self, name: str) -> dict[str, Any]:
        """Return the status of one container; empty while there is none."""
        statuses = self.pod().get("status", {}).get("containerStatuses", ())
        return next((status for status in statuses if status["name"] == name), {})

    def is_ready(self) -> bool:
        """Say whether all containers are."""
        return all(self.container(name).get("ready") for name in CONTAINERS)

    def kill(self, name: str) -> None:
        """Kill a container's process, and wait until another one is ready."""
        before = self.container(name)["restartCount"]
        self.signal(name, signal.SIGKILL)
        self.product.wait(lambda: self.container(name).get("restartCount") == before + 1)
        self.product.wait(self.is_ready)

    # ── as the kernel has it ──────────────────────────────────────────────────────────────────────────────────────────

    def process(self, name: str) -> str:
        """Return a container's first process, as the node numbers it."""
        self.product.wait(lambda: self.container(name).get("state", {}).get("running"))
        wanted = self.container(name)["containerID"].rpartition("/")[2]
        tasks = self.node.run(["ctr", "--namespace=k8s.io", "tasks", "list"]).splitlines()
        (process,) = (line.split()[1] for line in tasks if line.startswith(wanted))
        return process

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a container's process a signal."""
        self.node.run(["kill", f"-{int(number)}", self.process(name)])

    def says(self, name: str, file: str) -> str:
        """Return a file of ``/proc/PID``."""
        return self.node.run(["cat", f"/proc/{self.process(name)}/{file}"])

    def status(self, name: str) -> dict[str, str]:
        """Return ``/proc/PID/status``."""
        lines = (line.partition(":") for line in self.says(name, "status").splitlines())
        return {name: value.strip() for name, _, value in lines}

    def mounts(self, name: str) -> dict[str, str]:
        """Return each mount's place, and whether it is ``ro`` or ``rw``."""
        lines = (line.split() for line in self.says(name, "mounts").splitlines())
        return {words[1]: words[3].split(",")[0] for words in lines}

    # ── as the agent says ─────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, *paths: str, port: int = INNER) -> str:
        """Return what the agent answers on its pod's own loopback, one answer after the other."""
        network = ["nsenter", f"--net=/proc/{self.process('agent')}/ns/net"]
        return self.node.run([*network, sys.executable, "-c", _GETS, f"http://127.0.0.1:{port}", *paths])

    def _agents_process(self) -> str:
        return self.node.run(["pgrep", "--newest", "--full", "nodeagent .* run --kubernetes"]).strip()

    def probe(self) -> tuple[int, str]:
        """Ask what the kubelet's readiness probe asks; return the status and the words.  Needs no API server."""
        network = ["nsenter", f"--net=/proc/{self._agents_process()}/ns/net"]
        done = self.node.attempt([*network, sys.executable, "-c", _PROBE, f"http://127.0.0.1:{OUTER}/readyz"])
        code, _, words = done.stdout.partition(" ")
        return int(code), words

    def row(self, pod: Pod) -> dict[str, Any]:
        """Return what it says of *pod*; empty if nothing."""
        found: list[dict[str, Any]] = json.loads(self.get("/api/v1/pods"))["pods"]
        return next((row for row in found if row["uid"] == pod.uid), {})

    def is_settled(self, pod: Pod, *, after: int = 0) -> bool:
        """Say whether *pod* is as it should be, in an epoch later than *after*."""
        row = self.row(pod)
        return bool(row.get("in_sync") and row["epoch"] and row["epoch"] % 2 == 0 and row["epoch"] > after)

    def flows(self, pod: Pod, **wanted: str) -> list[dict[str, Any]]:
        """Return the flows of *pod* with these values."""
        query = "".join(f"&{name}={value}" for name, value in wanted.items())
        where = f"namespace={pod.object['metadata']['namespace']}&pod={pod.name}"
        found: list[dict[str, Any]] = json.loads(self.get(f"/api/v1/flows?{where}{query}"))["flows"]
        return found

    def connections(self, pod: Pod, **wanted: str) -> int:
        """Return how many connections those were."""
        return sum(flow["connections"] for flow in self.flows(pod, **wanted))

    def explained(self, pod: Pod, destinations: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        """Return what is to become of each connection that the root of *pod* makes, and why."""
        name = f"{pod.object['metadata']['namespace']}/{pod.name}"
        wanted = [f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address, port in destinations]
        lines = self.get(*(f"/api/v1/explain?pod={name}&to={to}&uid=0&gid=0" for to in wanted)).splitlines()
        return [json.loads(line) for line in lines]

    def metrics(self) -> dict[str, float]:
        """Return its metrics: values by name and labels, as they are written."""
        lines = (line for line in self.get("/metrics", port=OUTER).splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
