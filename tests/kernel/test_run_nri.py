"""A running agent and a container runtime: rules before the answer, and nothing that a socket says ends the agent."""

import asyncio
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nodeagent.nri import messages
from nodeagent.nri.frames import Frame, Kind, Service, encode
from tests.lab import Netns
from tests.lab.agent import NODEAGENT, RunningAgent
from tests.lab.cgroups import Cgroup
from tests.nri.hostile import inventory, request, speaker
from tests.nri.pods import container, pod
from tests.nri.runtime import Generations, Runtime
from tests.nri.stage import scene

pytestmark = pytest.mark.kernel

HOSTILE = [
    b"",
    b"\0\0",
    struct.pack(">II", 1, 2**31),
    encode(Frame(Service.PLUGIN, 1, Kind.REQUEST, b"\xff" * 9)),
    request("RunPodSandbox", b"\x0a\xff"),
    request("StateChange", b"\x12\x7f"),
    request("RunPodSandbox", b"\x13" * 1000),
    request("Synchronize", inventory(pods=[b"\x0a"])),
    request("Synchronize", inventory(containers=[b""] * 100_000)),
]
"""Each ends its connection; nothing of it reaches a namespace."""


@dataclass
class Sandboxed:
    """A pod that has its sandbox: a cgroup, a process in it, and a network namespace with its address."""

    netns: Netns
    told: messages.PodSandbox
    cgroup: Cgroup

    def programmed(self) -> bool:
        return "intercept" in self.netns.run(["nft", "list", "ruleset"])


@pytest.fixture
def sandboxed(kubepods: Cgroup) -> Iterator[Sandboxed]:
    told = pod(1, intercept="enabled")
    with Netns() as netns, subprocess.Popen([*netns.enter, "sleep", "infinity"]) as pause:
        netns.ip("\n".join(f"addr add {address} dev lo" for address in told.ips))
        cgroup = kubepods.child("kubepods").child("besteffort").child(f"pod{told.uid}")
        cgroup.child(told.id).join(pause.pid)
        try:
            yield Sandboxed(netns, told, cgroup)
        finally:
            pause.kill()


@pytest.fixture
def path(agent: RunningAgent, tmp_path: Path) -> Path:
    """Start the agent anew, as a plugin of the runtime at this path."""
    socket = tmp_path / "nri.sock"
    agent.stop()
    agent.start("--nri", str(socket))
    return socket


@pytest.mark.parametrize("generation", Generations, ids=lambda generation: generation.value.name)
@scene
async def test_rules_stand_before_the_runtime_is_answered(
    agent: RunningAgent, path: Path, sandboxed: Sandboxed, generation: Generations
) -> None:
    async with Runtime(path, generation, timeout=20) as runtime:
        await runtime.plugin()
        await runtime.run_pod(sandboxed.told)
        assert sandboxed.programmed()
        await asyncio.to_thread(agent.settle, "web-1")
        sandboxed.cgroup.child(container(1, sandboxed.told).id)
        await runtime.run_container(container(1, sandboxed.told))
        assert await asyncio.to_thread(lambda: agent.pod("web-1")["containers"]) == [sandboxed.told.id[:12], "app"]
        assert not agent.events("late pod")
        await runtime.stop_pod(sandboxed.told.id)
        await asyncio.to_thread(agent.wait, lambda: not agent.pod("web-1"))


@scene
async def test_what_started_while_nobody_listened_is_late_and_programmed(
    agent: RunningAgent, path: Path, sandboxed: Sandboxed
) -> None:
    async with Runtime(path, timeout=20) as runtime:
        await runtime.plugin()
        await asyncio.to_thread(agent.kill)
        await asyncio.to_thread(runtime.plugins[0].close)
        await runtime.run_pod(sandboxed.told)
        sandboxed.cgroup.child(container(1, sandboxed.told).id)
        await runtime.run_container(container(1, sandboxed.told))
        assert not sandboxed.programmed()
        await asyncio.to_thread(agent.start, "--nri", str(path))
        await runtime.plugin()
        assert sandboxed.programmed()
        await asyncio.to_thread(agent.wait, lambda: agent.events("late pod"))
        assert await asyncio.to_thread(lambda: agent.metrics()["nodeagent_late_pods_total"]) == 1


@scene
async def test_whatever_a_socket_says_the_next_runtime_is_served(
    agent: RunningAgent, path: Path, sandboxed: Sandboxed
) -> None:
    before = agent.pid
    async with speaker(path, HOSTILE) as heard:
        await heard.wait()
    assert await asyncio.to_thread(lambda: "nri" in agent.troubles())
    assert not sandboxed.programmed()
    async with Runtime(path, timeout=20) as runtime:
        await runtime.plugin()
        await runtime.run_pod(sandboxed.told)
        assert sandboxed.programmed()
    assert agent.pid == before
    assert agent.process
    assert agent.process.poll() is None


@scene
async def test_a_pod_that_is_not_where_the_runtime_says_is_left_alone(
    agent: RunningAgent, path: Path, sandboxed: Sandboxed
) -> None:
    told = messages.PodSandbox(ips=["10.244.9.9"])
    told.MergeFrom(sandboxed.told)
    async with Runtime(path, timeout=20) as runtime:
        await runtime.plugin()
        await runtime.run_pod(told)
        assert not sandboxed.programmed()
        said = await asyncio.to_thread(agent.pod, "web-1")
    assert (said["state"], "10.244.9.9" in said["detail"]) == ("refused", True)


@scene
async def test_a_pod_that_waits_goes_on_when_its_rules_stand(
    agent: RunningAgent, path: Path, sandboxed: Sandboxed
) -> None:
    sandboxed.told.ClearField("ips")
    told = messages.PodSandbox(ips=["127.0.0.1"])  # the question comes from there; the pod's namespace has it, too
    told.MergeFrom(sandboxed.told)
    command = [*NODEAGENT, "wait", "--agent", agent.metrics_at, "--timeout"]

    async def wait(seconds: str) -> tuple[int, str]:
        done = await asyncio.to_thread(subprocess.run, [*command, seconds], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    async with Runtime(path, timeout=20) as runtime:
        await runtime.plugin()
        code, said = await wait("2")
        assert (code, "no pod of this node is known by the address 127.0.0.1" in said) == (1, True)
        await runtime.run_pod(told)
        code, said = await wait("30")
        assert (code, said.partition(":")[0]) == (0, "stands")
