"""The agent with many pods: what it takes of memory and time when all is well, and how soon it is back."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bench.namespaces import Namespaces
from nodeagent.bpf import compiler
from nodeagent.bpf.compiler import FILES, SOURCES, compile_programs
from nodeagent.bpf.counting import detach
from nodeagent.cli.output import print_table
from tests.lab import Cgroup, TestCgroup
from tests.lab.agent import Manifest, RunningAgent, inject

FLOWS = 10_000
WIRE = (
    "link add eth0 type veth peer name far",
    "addr add 10.9.0.2/24 dev eth0",
    "link set eth0 up",
    "link set far up",
    "route add default dev eth0",
)
_IDLE, _OFTEN = "resync: {seconds: 3600}\n", "resync: {seconds: 1}\n"
_LEGACY = "backend: legacy\n"
_SECONDS = 10
_SAVED = 20
_GIVEN_BACK = 31  # by when the agent has returned to the kernel what it needed for a moment
_NOT_SHIPPED = "import sys\nsys.modules.update(dict.fromkeys(('rich', 'greenlet')))\n"
"""Packages of a developer's environment that libraries import where they are there: no image has them."""

_SENDER = """
import ctypes, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
paths, each = json.load(sys.stdin)
for path in paths:
    descriptor = os.open(path, os.O_RDONLY)
    if libc.setns(descriptor, 0x40000000):
        raise OSError(ctypes.get_errno(), "setns")
    os.close(descriptor)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(each):
            sock.sendto(b"x", (f"198.18.{number >> 8}.{number & 255}", 9))
"""


@dataclass(frozen=True)
class Scene:
    """An agent, its pods, and the cgroup that it counts in."""

    agent: RunningAgent
    cgroup: Cgroup
    paths: Sequence[str]
    configuration: str

    @property
    def pids(self) -> tuple[int, int]:
        """The agent's process and its programmer's."""
        return self.agent.pid, self.agent.programmer_pid

    def is_settled(self) -> bool:
        """Say whether all pods are in sync; metrics are rendered once a second, so looking costs next to nothing."""
        found = [value for name, value in self.agent.metrics().items() if name.startswith("nodeagent_rules_in_sync")]
        return len(found) == len(self.paths) and all(found)

    def send(self) -> None:
        """Let all pods together have as many flows as the budget is for, and wait until they are in the ledger."""
        sender = subprocess.Popen([sys.executable, "-c", _SENDER], stdin=subprocess.PIPE, text=True)
        self.cgroup.child("senders").join(sender.pid)
        sender.communicate(json.dumps([list(self.paths), FLOWS // len(self.paths)]))
        assert sender.returncode == 0
        self.agent.wait(lambda: self._entries >= FLOWS // len(self.paths) * len(self.paths))

    @property
    def _entries(self) -> float:
        name = "nodeagent_bpf_map_entries"
        return sum(value for key, value in self.agent.metrics().items() if key.startswith(f"{name}{{"))


def run(pods: int, restarts: int = 5) -> None:
    """Print what is measured."""
    with _scene(pods, _LEGACY) as scene:
        _sweeps(scene, "legacy")
    with _scene(pods) as scene:
        print(f"\n## The agent, {pods} pods\n")
        rows = [("after the start", *_memory(scene))]
        scene.send()
        time.sleep(5)
        rows.append((f"with {FLOWS:,} flows", *_memory(scene)))
        for _ in range(10):
            scene.agent.get("/metrics", inner=False)
            scene.agent.get("/api/v1/flows")
            scene.agent.get("/api/v1/overview")
        rows.append(("after ten scrapes, lists of flows and overviews", *_memory(scene)))
        time.sleep(_GIVEN_BACK)
        rows.append(("half a minute later", *_memory(scene)))
        print_table(rows, ("proportional, MB", "agent", "programmer", "both", "agent, resident"))
        print(f"\nthe child that compiles the counting programs, at its peak: {_compiling():.0f} MB resident")
        _sweeps(scene, "nft")
        rows = [("restart", *_restart(scene)) for _ in range(restarts)]
        print(f"\n## Restart of the agent, {pods} pods, {FLOWS:,} flows: seconds since its process began\n")
        print_table(rows, ("", "serving", "all pods verified and counted", "of these, the pods", "CPU of both"))
        print_table(
            [("after a restart", *_memory(scene))], ("proportional, MB", "agent", "programmer", "both", "resident")
        )


@contextmanager
def _scene(pods: int, configuration: str = "") -> Iterator[Scene]:
    with (
        tempfile.TemporaryDirectory() as folder,
        TestCgroup() as cgroup,
        Namespaces(pods, batch=WIRE) as namespaces,
        _as_installed(Path(folder)),
    ):
        programs = Path(folder, "compiled")
        programs.mkdir(mode=0o700)
        compile_programs(cache=programs)
        agent = RunningAgent(Path(folder), cgroup.path, programs, configuration + _IDLE)
        scene = Scene(agent, cgroup, namespaces.paths, configuration)
        for number, path in enumerate(namespaces.paths):
            agent.add(Manifest(f"pod-{number}", path))
        with agent:
            agent.wait(lambda: scene.is_settled() and agent.counts())
            yield scene
        detach()


@contextmanager
def _as_installed(folder: Path) -> Iterator[None]:
    """Let Python keep what it compiles, as an image does: else each start would measure its compiler."""
    before = dict(os.environ)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    os.environ["PYTHONPATH"] = str(inject(folder, _NOT_SHIPPED))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _compiling() -> float:
    """Return the largest resident size of the child that compiles, in MB."""
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen([sys.executable, "-P", "-m", compiler.__name__, str(SOURCES), *FILES], stdout=output)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return usage.ru_maxrss * 1024 / 1e6


def _sweeps(scene: Scene, backend: str) -> None:
    """Print what a sweep takes of both processes, and what reading the same pods by command would."""
    idle = _spent(scene)
    scene.agent.configure(scene.configuration + _OFTEN)
    time.sleep(2)
    busy, count = _spent(scene), len(scene.agent.events("done"))
    sweeps = [event for event in scene.agent.events("done")[:count] if event["verb"] == "sweep"]
    assert sweeps
    scene.agent.configure(scene.configuration + _IDLE)
    ours = [(b - i) / _SECONDS for b, i in zip(busy, idle, strict=True)]
    legacy, nft = (_saving(scene, command) for command in ("iptables-legacy-save", "iptables-nft-save"))
    pods = len(scene.paths)
    print(f"\n## A sweep of {pods} pods by {backend} ({_SECONDS} of them, {len(sweeps)} questions so far)\n")
    rows = [
        ("the programmer's CPU, ms", f"{ours[1] * 1e3:.1f}"),
        ("the agent's CPU, ms", f"{ours[0] * 1e3:.1f}"),
        ("of a core at one in 10 s, %", f"{sum(ours) * 10:.2f}"),
        ("`iptables-legacy-save` by nsenter, both families, of as many pods, ms", f"{legacy * pods * 1e3:.0f}"),
        ("times dearer", f"{legacy * pods / sum(ours):.0f}"),
        ("`iptables-nft-save`, the same", f"{nft * pods * 1e3:.0f}"),
        ("times dearer", f"{nft * pods / sum(ours):.0f}"),
    ]
    print_table(rows, ("what", "value"))


def _spent(scene: Scene) -> tuple[float, float]:
    """Return the CPU time of agent and programmer within some seconds."""
    before = [_cpu(pid) for pid in scene.pids]
    time.sleep(_SECONDS)
    after = [_cpu(pid) for pid in scene.pids]
    return after[0] - before[0], after[1] - before[1]


def _saving(scene: Scene, command: str) -> float:
    """Return the CPU time of reading one pod's tables by *command* and its sister."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for path in scene.paths[:_SAVED]:
        for name in (command, command.replace("iptables", "ip6tables")):
            subprocess.run(["nsenter", f"--net={path}", name], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent / len(scene.paths[:_SAVED])


def _restart(scene: Scene) -> tuple[str, ...]:
    """Return when it served, when the last pod was verified, and what that took."""
    agent = scene.agent
    agent.stop()
    begin = time.time()
    agent.start()
    serving = time.time()
    agent.wait(lambda: len([e for e in agent.events("pod") if e["stage"] == "intercepted"]) >= len(scene.paths))
    cpu = sum(_cpu(pid) for pid in scene.pids)
    agent.wait(scene.is_settled)
    pods = [_time(event) for event in agent.events("pod")]
    known = [_time(event) for event in agent.events("done") if event["verb"] == "events"]
    return (
        f"{serving - begin:.2f}",
        f"{max(pods) - begin:.2f}",
        f"{max(pods) - min(known):.2f}",
        f"{cpu:.2f}",
    )


def _time(event: dict[str, str]) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()


def _cpu(pid: int) -> float:
    """Return the CPU time of a process so far, in seconds, by the scheduler's clock."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def _memory(scene: Scene) -> tuple[str, ...]:
    """Return megabytes: proportional of the agent, of the programmer, of both, and resident of the agent."""
    agent, programmer = map(_proportional, scene.pids)
    return tuple(f"{size:.0f}" for size in (agent, programmer, agent + programmer, scene.agent.resident() / 1e6))


def _proportional(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024 / 1e6
