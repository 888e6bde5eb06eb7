"""A running `nodeagent run`: its process, its directory of pods, its configuration, and what it says over HTTP.

    with RunningAgent(tmp_path, cgroup, programs) as agent:
        agent.add(Manifest("web", netns=lab.pod.path))
        agent.wait(lambda: agent.pod("web")["in_sync"])

Waiting looks at what the agent says until it says what is awaited; nothing here sleeps for a time that is
thought to be enough.  ``NODEAGENT_LAB_PATIENCE=SECONDS`` gives up later: emulated kernels are slow.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.lab.http import NetnsConnection
from tests.lab.interrupts import interrupts_held
from tests.lab.netns import Netns
from tests.lab.process import LabError

_PATIENCE = float(os.environ.get("NODEAGENT_LAB_PATIENCE", "60"))
_STEP = 0.01
_OWN_LISTENERS = 'http: {metrics: "127.0.0.1:9640", ui: "127.0.0.1:9641"}\n'

NODEAGENT = (sys.executable, "-m", "nodeagent")


@dataclass(frozen=True)
class Manifest:
    """A Pod's manifest: its name, its netns, its annotations (short keys are ours), its containers by ID."""

    name: str
    netns: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    uid: str = ""
    containers: Mapping[str, str] = field(default_factory=dict)
    host_network: bool = False
    namespace: str = "default"

    def text(self) -> str:
        """Return it as JSON, which is YAML."""
        notes = {key if "/" in key else f"nodeagent.io/{key}": value for key, value in self.annotations.items()}
        if self.netns:
            notes["nodeagent.io/netns"] = self.netns
        statuses = [{"name": name, "containerID": f"containerd://{id_}"} for id_, name in self.containers.items()]
        metadata = {
            "name": self.name,
            "namespace": self.namespace,
            "annotations": notes,
            **({"uid": self.uid} if self.uid else {}),
        }
        spec = {"hostNetwork": True} if self.host_network else {}
        return json.dumps(
            {"kind": "Pod", "metadata": metadata, "spec": spec, "status": {"containerStatuses": statuses}}
        )


def inject(folder: Path, code: str) -> Path:
    """Return a folder for PYTHONPATH that has *code* run at the start of each process."""
    at = folder / "injected"
    at.mkdir()
    (at / "sitecustomize.py").write_text(f"from pathlib import Path\n{code}")
    return at


class RunningAgent:
    """One agent below *folder*; it may be stopped, killed and started again."""

    def __init__(
        self, folder: Path, cgroup: Path, programs: Path, configuration: str = "", within: Netns | None = None
    ) -> None:
        """Count below *cgroup*, never above; *programs* is where compiled ones are kept.

        *within* is where it listens, at the product's own ports; else it has free ones of the test's namespace.
        """
        self._within = within
        self.page_at = "127.0.0.1:0"
        """Where its page is, from the next `configure` on, unless it has a namespace of its own."""
        self.folder, self.pods_dir = folder, folder / "pods"
        self.pods_dir.mkdir(parents=True, exist_ok=True)
        self.configuration, self.state = folder / "config.yaml", folder / "state"
        self._cgroup = cgroup
        self.state.mkdir(exist_ok=True, mode=0o700)
        (self.state / "programs").symlink_to(programs)
        self.log = folder / "agent.log"
        self.configure(configuration)
        self.process: subprocess.Popen[bytes] | None = None
        self.metrics_at = self.api_at = ""
        self.before: tuple[str, ...] = ()
        """Words to put before its command, so that it runs in other surroundings."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @contextmanager
    def stopping(self) -> Iterator[Self]:
        """Let it be started inside the block, or not; it is not there afterwards."""
        try:
            yield self
        finally:
            self.kill()

    # -- its life

    @property
    def places(self) -> tuple[str, ...]:
        """The options that `run` and `uninstall` share."""
        return ("--state-dir", str(self.state), "--cgroup", str(self._cgroup))

    def start(self, *arguments: str) -> None:
        """Start it, and wait until it serves."""
        self.log.write_bytes(b"")
        with self.log.open("ab") as log, interrupts_held():
            self.process = subprocess.Popen(
                [
                    *self._enter,
                    *self.before,
                    *(*NODEAGENT, "--log-level", "info", "--log-format", "json", "run"),
                    *("--pods-dir", str(self.pods_dir), "--config", str(self.configuration)),
                    *(*self.places, *arguments),
                ],
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.wait(lambda: self._serves() or self.process is None or self.process.poll() is not None)
        if not self.metrics_at:
            raise LabError(f"the agent ended: {self.log.read_text()}")

    @property
    def _enter(self) -> tuple[str, ...]:
        return (*self._within.enter, "--") if self._within else ()

    def _serves(self) -> bool:
        for event in self.events("serving"):
            self.metrics_at, self.api_at = event["metrics"], event["inner"]
            return True
        return False

    @property
    def pid(self) -> int:
        """The agent's process id."""
        assert self.process
        return self.process.pid

    @property
    def programmer_pid(self) -> int:
        """Its programmer's process id."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return int("".join((task / "children").read_text() for task in tasks).split()[0])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it in an orderly way; return its exit code."""
        assert self.process
        self.process.send_signal(number)
        code = self.process.wait(_PATIENCE)
        self.process = None
        self.metrics_at = self.api_at = ""
        return code

    def kill(self) -> None:
        """End it at once, if it runs."""
        if self.process:
            self.process.kill()
            self.process.wait()
        self.process = None
        self.metrics_at = self.api_at = ""

    # -- what it is told

    def add(self, *manifests: Manifest) -> None:
        """Write manifests, one file each, as editors do: under another name first."""
        for manifest in manifests:
            self.write(f"{manifest.name}.json", manifest.text())

    def write(self, name: str, text: str) -> None:
        """Replace a file of the pods' directory."""
        path = self.pods_dir / f".{name}.new"
        path.write_text(text, encoding="utf-8")
        path.rename(self.pods_dir / name)

    def remove(self, name: str) -> None:
        """Remove a pod's manifest."""
        (self.pods_dir / f"{name}.json").unlink()

    def configure(self, text: str) -> None:
        """Replace the configuration; the listeners' ports stay free ones."""
        path = self.configuration.with_suffix(".new")
        free = f'http: {{metrics: "127.0.0.1:0", ui: "{self.page_at}"}}\n'
        path.write_text((_OWN_LISTENERS if self._within else free) + text, encoding="utf-8")
        path.rename(self.configuration)

    # -- what it says

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds; LabError if it never does."""
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise LabError(f"it never came to that: {self.log.read_text()[-4000:]}")
            time.sleep(_STEP)

    def get(self, path: str, host: str | None = None, *, inner: bool = True) -> tuple[int, str]:
        """Return status and text of one answer."""
        at = self.api_at if inner else self.metrics_at
        connection = NetnsConnection(at, self._within, _PATIENCE)
        try:
            connection.request("GET", path, headers={"Host": host or at})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def ask(self, path: str) -> Any:  # noqa: ANN401  # it is JSON
        """Return what the API says."""
        return json.loads(self.get(path)[1])

    def troubles(self) -> set[str]:
        """Return the conditions that /readyz names."""
        return {reason["condition"] for reason in json.loads(self.get("/readyz", inner=False)[1])["reasons"]}

    def counts(self) -> bool:
        """Say whether it counts."""
        return not self.troubles() & {"counting", "programmer"}

    def pod(self, name: str) -> dict[str, Any]:
        """Return what the API says of one pod; empty if it says nothing."""
        found: list[dict[str, Any]] = self.ask("/api/v1/pods")["pods"]
        return next((pod for pod in found if pod["pod"] == name), {})

    def is_settled(self, name: str = "web", *, after: int = 0) -> bool:
        """Say whether the pod is in sync and an epoch later than *after* has begun."""
        pod = self.pod(name)
        return bool(pod and pod["in_sync"] and pod["epoch"] and pod["epoch"] % 2 == 0 and pod["epoch"] > after)

    def settle(self, name: str = "web", *, after: int = 0) -> int:
        """Wait until the pod is settled in an epoch later than *after*; return it."""
        self.wait(lambda: self.is_settled(name, after=after))
        return int(self.pod(name)["epoch"])

    def flows(self, **wanted: str) -> list[dict[str, Any]]:
        """Return the flows with these values."""
        query = "&".join(f"{name}={value}" for name, value in wanted.items())
        flows: list[dict[str, Any]] = self.ask(f"/api/v1/flows?{query}")["flows"]
        return flows

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return what it logged under this name."""
        lines = [line for line in self.log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def metrics(self) -> dict[str, float]:
        """Return its metrics: values by name and labels, as they are written."""
        found: dict[str, float] = {}
        for line in self.get("/metrics", inner=False)[1].splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return found

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of the commands that ask the agent."""
        command = [*self._enter, *NODEAGENT, *arguments, "--api", self.api_at or "127.0.0.1:9"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def resident(self, pid: int | None = None) -> int:
        """Return the resident memory of the agent (or of *pid*) in bytes."""
        status = Path(f"/proc/{pid or self.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024

    def descriptors(self, pid: int | None = None) -> int:
        """Return how many descriptors the agent (or *pid*) has open."""
        return len(list(Path(f"/proc/{pid or self.pid}/fd").iterdir()))
