"""The agent with many pods: how long until all are programmed, what a sweep costs, what it takes of memory."""

import tempfile
import time
from pathlib import Path

from bench.namespaces import Namespaces
from nodeagent.bpf.counting import detach
from tests.lab import TestCgroup
from tests.lab.agent import Manifest, RunningAgent


def run(pods: int) -> None:
    """Print one table."""
    with tempfile.TemporaryDirectory() as folder, TestCgroup() as cgroup, Namespaces(pods) as namespaces:
        programs = Path(folder, "compiled")
        programs.mkdir(mode=0o700)
        agent = RunningAgent(Path(folder), cgroup.path, programs)
        for number, path in enumerate(namespaces.paths):
            agent.add(Manifest(f"pod-{number}", path))
        print(f"\n## The agent, {pods} pods\n")
        with agent:
            agent.wait(lambda: _all_settled(agent, pods))
            print(f"memory after the start       {_memory(agent)}")
            _sweeps(agent)
            agent.stop()
            begin = time.monotonic()
            agent.start()
            serving = time.monotonic()
            agent.wait(lambda: _all_settled(agent, pods))
            done = time.monotonic()
            print(
                f"restart: serving after       {serving - begin:.2f} s, all pods in sync {done - serving:.2f} s later"
            )
            print(f"memory in steady state       {_memory(agent)}")
            seconds = [event["milliseconds"] for event in agent.events("done") if event["verb"] == "observe"]
            print(f"first looks                  {len(seconds)}, {sum(seconds) / 1e3:.2f} s in the programmer")
        detach()


def _all_settled(agent: RunningAgent, pods: int) -> bool:
    in_sync = [value for name, value in agent.metrics().items() if name.startswith("nodeagent_rules_in_sync")]
    return len(in_sync) == pods and all(in_sync)  # rendered once a second: looking costs the agent next to nothing


def _sweeps(agent: RunningAgent) -> None:
    """Let sweeps follow one another, and say what one took of both processes."""
    agent.configure("resync: {seconds: 1}\n")
    count = len(agent.events("done"))
    before, begin = _cpu(agent), time.monotonic()
    agent.wait(lambda: time.monotonic() - begin > 10)  # noqa: PLR2004  # ten sweeps
    took = _cpu(agent) - before
    sweeps = [event for event in agent.events("done")[count:] if event["verb"] == "sweep"]
    programmer = sum(event["milliseconds"] for event in sweeps) / 10
    print(f"a sweep                      {programmer:.1f} ms in the programmer; all work in 10 s: {took:.2f} s of CPU")


def _cpu(agent: RunningAgent) -> float:
    """Return the CPU time of agent and programmer so far."""
    total = 0
    for pid in (agent.pid, agent.programmer_pid):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / 100


def _memory(agent: RunningAgent) -> str:
    sizes = [_proportional(pid) for pid in (agent.pid, agent.programmer_pid)]
    resident = agent.resident() / 1e6
    return f"agent {resident:.0f} MB resident; proportional: agent {sizes[0]:.0f} MB, programmer {sizes[1]:.0f} MB"


def _proportional(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024 / 1e6
