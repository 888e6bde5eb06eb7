"""What real runtimes said, and runtimes that are killed while they say it."""

import asyncio
import signal
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodeagent.nri import Container, Outcome, Runtime
from nodeagent.nri.frames import Decoder
from tests.nri.pods import pod
from tests.nri.recorder import Recorder
from tests.nri.stage import plugged, scene

RECORDINGS = Path(__file__).parents[1] / "nri" / "recordings"
"""All that a runtime sent in one connection: containerd 2.1.9 itself, and NRI 0.12.2's own package for runtimes."""


@scene
async def replay(name: str, recorder: Recorder, folder: Path) -> None:
    """Say a recording to a plugin for *recorder*."""
    path = folder / "nri.sock"

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((RECORDINGS / name).read_bytes())
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(speak, path), plugged(path, recorder):
        await recorder.until(lambda it: it.runtimes and it.calls[-1] in {"remove web-1", "remove web-7"})
        assert recorder.errors == []
    assert {answer.outcome for answer in recorder.answers} == {Outcome.DONE}
    assert all(answer.problems == () for answer in recorder.answers)


def test_containerd_2_1_is_understood(tmp_path: Path) -> None:
    recorder = Recorder()
    replay("containerd-2.1.9.bin", recorder, tmp_path)
    assert recorder.runtimes == [Runtime("containerd", "2.1.9+unknown")]
    assert recorder.calls == [
        *("synchronize", "run web-2", "start web-2/app", "run web-3"),
        *("stop web-2", "remove web-2/app", "remove web-2"),
        *("stop web-3", "remove web-3", "stop web-1", "remove web-1"),
    ]
    first, of_host = (answer.sandbox for answer in recorder.answers if answer.call == "RunPodSandbox")
    assert first
    assert of_host
    assert (first.namespace, first.uid) == ("shop", "8a9f3c1e-5d2b-4f6a-9c1d-000000000002")
    assert first.annotations == {"nodeagent.io/excludeOutboundPorts": "3306"}
    assert first.ips == (ip_address("10.244.0.3"), ip_address("fd00:244::3"))
    assert first.netns
    assert first.netns.startswith("/var/run/netns/cni-")
    assert first.cgroup_parent == f"/kubepods/besteffort/pod{first.uid}"
    assert first.cgroups_path == f"{first.cgroup_parent}/{first.id}"
    assert first.pid
    assert (of_host.netns, of_host.ips) == (None, ())


def test_nri_0_12_is_understood(tmp_path: Path) -> None:
    recorder = Recorder()
    replay("nri-0.12.2.bin", recorder, tmp_path)
    assert recorder.runtimes == [Runtime("adapt", "v0.12.2", "v0.12.2")]
    assert recorder.calls == [
        *("synchronize", "run web-7", "start web-7/app", "remove web-7/app", "stop web-7", "remove web-7"),
    ]
    assert recorder.started == [
        Container(f"{7:063x}c", pod(7).id, "app", f"{pod(7).linux.cgroup_parent}/c", uid=1337, gid=7)
    ]


@pytest.mark.parametrize("name", [path.name for path in RECORDINGS.iterdir()])
def test_a_recording_cut_anywhere_is_a_beginning_of_it(name: str) -> None:
    data = (RECORDINGS / name).read_bytes()
    whole = list(Decoder().feed(data))
    assert len(whole) > 5
    for end in range(0, len(data), 13):
        found = list(Decoder().feed(data[:end]))
        assert found == whole[: len(found)]


@scene
async def test_a_runtime_that_is_killed_at_any_point_loses_no_pod(tmp_path: Path) -> None:
    path, recorder = tmp_path / "nri.sock", Recorder()
    started: list[int] = []
    async with plugged(path, recorder):
        for life in range(6):
            runtime = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.nri.process", str(path), *map(str, started)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            assert runtime.stdin
            assert runtime.stdout
            assert await runtime.stdout.readline() == b"ready\n"
            await recorder.until(lambda it, life=life: len(it.runtimes) > life)  # type: ignore[misc]
            assert recorder.pods.keys() == {pod(number).id for number in started}
            for number in range(100 * life, 100 * life + 20):
                runtime.stdin.write(b"%d\n" % number)
            for _ in range(3 * life):
                started.append(int(await runtime.stdout.readline()))
                assert pod(started[-1]).id in recorder.pods, "the pod started without us"
            runtime.send_signal(signal.SIGKILL)
            started.extend(map(int, (await runtime.stdout.read()).split()))
            await runtime.wait()
            runtime.stdin.close()
    assert {pod(number).id for number in started} <= recorder.pods.keys()
