"""The plugin against a runtime that keeps state, in both generations of the protocol."""

import asyncio
import socket
from pathlib import Path

import pytest

from nodeagent.nri import Call, Outcome, Runtime, Sandbox, Settings, messages
from nodeagent.nri.calls import OTHERS
from nodeagent.nri.late import MOST_LATE, Late
from tests.nri.pods import container, pod
from tests.nri.recorder import Recorder
from tests.nri.runtime import Generations
from tests.nri.runtime import Runtime as FakeRuntime
from tests.nri.stage import plugged, scene

IMPATIENT = Settings(budget=0.01, first_delay=0.001, longest_delay=0.01)
PATIENT = Settings(budget=30.0, first_delay=0.001, longest_delay=0.01)

generations = pytest.mark.parametrize(
    "generation",
    [
        pytest.param(Generations.OLD, id="events come as StateChange"),
        pytest.param(Generations.NEW, id="each event has a method of its own"),
    ],
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nri.sock"


@generations
@scene
async def test_a_pod_lives_and_each_step_is_told_before_the_next(path: Path, generation: Generations) -> None:
    recorder = Recorder()
    async with FakeRuntime(path, generation) as runtime, plugged(path, recorder):
        await runtime.plugin()
        first = pod(1, excludeOutboundPorts="3306")
        await runtime.run_pod(first)
        assert recorder.pods[first.id].annotations == {"nodeagent.io/excludeOutboundPorts": "3306"}
        await runtime.run_container(container(1, first))
        assert recorder.containers[container(1, first).id].uid == 1337
        await runtime.remove_container(container(1, first).id)
        await runtime.stop_pod(first.id)
        await runtime.remove_pod(first.id)
    told = ["run web-1", "start web-1/app", "remove web-1/app", "stop web-1", "remove web-1"]
    assert recorder.calls == ["synchronize", *told]
    assert (recorder.pods, recorder.containers, runtime.dropped) == ({}, {}, 0)
    assert {answer.outcome for answer in recorder.answers} == {Outcome.DONE}


@generations
@scene
async def test_what_runs_already_is_told_first(path: Path, generation: Generations) -> None:
    recorder = Recorder()
    async with FakeRuntime(path, generation) as runtime:
        for number in (1, 2):
            await runtime.run_pod(pod(number))
        await runtime.run_container(container(1, pod(2)))
        async with plugged(path, recorder):
            await recorder.until(lambda it: it.runtimes)
    assert [sandbox.name for sandbox in recorder.pods.values()] == ["web-1", "web-2"]
    assert [item.pod_sandbox_id for item in recorder.containers.values()] == [pod(2).id]
    assert recorder.runtimes == [Runtime("fake", "v1", "0.12" if generation is Generations.NEW else "")]


@generations
@scene
async def test_only_what_is_needed_is_subscribed_to(path: Path, generation: Generations) -> None:
    async with FakeRuntime(path, generation) as runtime, plugged(path, Recorder()):
        link = await runtime.plugin()
        await runtime.run_pod(pod(1))
        await runtime.run_container(container(1, pod(1)))
        await runtime.remove_container(container(1, pod(1)).id)
    names = ["RunPodSandbox", "StartContainer", "RemoveContainer"]
    assert link.methods[2:] == (names if generation is Generations.NEW else ["StateChange"] * len(names))


@pytest.mark.parametrize("method", sorted(OTHERS))
@scene
async def test_a_method_without_interest_gets_no_objection(path: Path, method: str) -> None:
    async with FakeRuntime(path) as runtime, plugged(path, Recorder()):
        assert await (await runtime.plugin()).call(method, b"") == messages.Response()


@pytest.mark.parametrize(
    "method",
    [
        pytest.param("RunPodSandboxes", id="of a later version"),
        pytest.param("", id="without a name"),
        pytest.param("x" * 100_000, id="with a long name"),
        pytest.param("\n\x1b[2J", id="with control characters"),
    ],
)
@scene
async def test_an_unknown_method_is_unimplemented(path: Path, method: str) -> None:
    async with FakeRuntime(path) as runtime, plugged(path, Recorder()):
        response = await (await runtime.plugin()).call(method, b"")
    assert (response.status.code, response.payload) == (12, b"")
    assert response.status.message.isprintable()
    assert len(response.status.message) < 200


@generations
@scene
async def test_a_late_handler_holds_no_pod_up_and_goes_on(path: Path, generation: Generations) -> None:
    release = asyncio.Event()
    recorder = Recorder(lambda _sandbox: wait_for(release))
    async with FakeRuntime(path, generation) as runtime, plugged(path, recorder, IMPATIENT):
        await runtime.plugin()
        await runtime.run_pod(pod(1))
        await recorder.until(lambda it: it.outcomes(Call.RUN_SANDBOX))
        answer = recorder.answers[-1]
        assert (answer.outcome, answer.sandbox and answer.sandbox.name, answer.problems) == (Outcome.LATE, "web-1", ())
        assert recorder.calls == ["synchronize"]
        release.set()
        await recorder.until(lambda it: it.calls == ["synchronize", "run web-1"])
        assert runtime.dropped == 0


async def wait_for(event: asyncio.Event) -> None:
    await event.wait()


@scene
async def test_the_budget_stays_below_the_runtimes_own_limit(path: Path) -> None:
    recorder = Recorder(lambda _sandbox: wait_for(asyncio.Event()))
    async with FakeRuntime(path, timeout=0.5) as runtime, plugged(path, recorder, Settings(budget=3600)):
        await runtime.plugin()
        await runtime.run_pod(pod(1))
        await recorder.until(lambda it: it.outcomes(Call.RUN_SANDBOX) == [Outcome.LATE])
        assert runtime.dropped == 0


@scene
async def test_a_handler_that_fails_holds_no_pod_up(path: Path) -> None:
    async def fail(sandbox: Sandbox) -> None:
        raise ValueError(sandbox.name)

    recorder = Recorder(fail)
    async with FakeRuntime(path) as runtime, plugged(path, recorder):
        await runtime.plugin()
        await runtime.run_pod(pod(1))
        await recorder.until(lambda it: it.outcomes(Call.RUN_SANDBOX) == [Outcome.FAILED])
    assert [str(problem) for problem in recorder.answers[-1].problems] == ["web-1"]
    assert runtime.pods.keys() == {pod(1).id}


@generations
@scene
async def test_a_pod_that_cannot_be_read_is_left_alone_and_the_next_is_not(path: Path, generation: Generations) -> None:
    recorder = Recorder()
    bad = pod(1)
    bad.uid = "../../etc"
    async with FakeRuntime(path, generation) as runtime, plugged(path, recorder):
        await runtime.plugin()
        await runtime.run_pod(bad)
        await runtime.run_pod(pod(2))
        await recorder.until(lambda it: it.outcomes(Call.RUN_SANDBOX) == [Outcome.REFUSED, Outcome.DONE])
    (problem,) = recorder.answers[1].problems
    assert str(problem) == "pod shop/web-1: the runtime's UID '../../etc' is not one: the pod is left alone"
    assert recorder.calls == ["synchronize", "run web-2"]


@scene
async def test_an_inventory_is_taken_over_without_what_cannot_be_read(path: Path) -> None:
    recorder = Recorder()
    bad = pod(2)
    bad.name = "web 2"
    async with FakeRuntime(path) as runtime:
        runtime.pods = {item.id: item for item in (pod(1), bad, pod(3))}
        runtime.containers = {"x": messages.Container(id="x", name="no pod")}
        async with plugged(path, recorder):
            await recorder.until(lambda it: it.answers)
    assert [sandbox.name for sandbox in recorder.pods.values()] == ["web-1", "web-3"]
    assert recorder.answers[0].outcome is Outcome.DONE
    assert [str(problem).split(":")[0] for problem in recorder.answers[0].problems] == [
        "pod shop/web 2",
        "container no pod",
    ]


@pytest.mark.parametrize("extra", [pytest.param(0, id="large parts"), pytest.param(3, id="with empty parts first")])
@scene
async def test_an_inventory_in_parts_is_told_once(path: Path, extra: int) -> None:
    recorder = Recorder()
    async with FakeRuntime(path) as runtime:
        runtime.empty_parts = extra
        for number in range(40):
            runtime.pods[str(number)] = pod(number, excludeOutboundPorts="1," * 100_000)
        async with plugged(path, recorder):
            link = await runtime.plugin()
    assert link.methods.count("Synchronize") == 2 + extra
    assert recorder.calls == ["synchronize"]
    assert len(recorder.pods) == 40


@scene
async def test_a_runtime_that_dies_is_found_again_with_what_it_then_has(path: Path) -> None:
    recorder = Recorder()
    async with FakeRuntime(path) as runtime, plugged(path, recorder):
        for life in range(1, 6):
            await runtime.plugin()
            await runtime.run_pod(pod(life))
            await runtime.kill()
            # What happens without us: the pod of this life ends, another has begun.
            del runtime.pods[pod(life).id]
            runtime.pods[pod(100 + life).id] = pod(100 + life)
            await recorder.until(lambda it: it.errors)
            recorder.errors.clear()
            recorder.runtimes.clear()
            await runtime.start()
            await recorder.until(lambda it: it.runtimes)
            assert recorder.pods.keys() == runtime.pods.keys()


@scene
async def test_a_runtime_that_is_not_there_yet_is_waited_for(path: Path) -> None:
    recorder = Recorder()
    async with plugged(path, recorder):
        await recorder.until(lambda it: len(it.errors) > 2)
        async with FakeRuntime(path):
            await recorder.until(lambda it: it.runtimes)
        advice = "No such file or directory: is NRI switched on in the container runtime?"
        assert str(recorder.errors[0]) == f"{path}: {advice}"


@scene
async def test_somebody_else_may_make_the_connection(path: Path) -> None:
    async def dial(_path: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        sock.setblocking(False)  # noqa: FBT003  # its own signature
        return sock

    recorder = Recorder()
    async with FakeRuntime(path), plugged(Path("/nowhere"), recorder, dial=dial):
        await recorder.until(lambda it: it.runtimes)
    assert not recorder.errors


@scene
async def test_two_plugins_at_one_runtime_are_both_told(path: Path) -> None:
    first, second = Recorder(), Recorder()
    async with FakeRuntime(path) as runtime, plugged(path, first), plugged(path, second):
        await runtime.plugin(2)
        await runtime.run_pod(pod(1))
        assert first.pods == second.pods != {}


@scene
async def test_what_is_late_ends_with_the_plugin(path: Path) -> None:
    ended: list[str] = []

    async def never(sandbox: Sandbox) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(sandbox.name)

    async with FakeRuntime(path) as runtime:
        async with plugged(path, Recorder(never), IMPATIENT):
            await runtime.plugin()
            for number in (1, 2):
                await runtime.run_pod(pod(number))
        assert sorted(ended) == ["web-1", "web-2"]


@scene
async def test_late_work_is_bounded() -> None:
    late = Late()
    forever = asyncio.Event()
    for _ in range(MOST_LATE):
        assert await late.within(0, lambda: wait_for(forever)) == (Outcome.LATE, ())
    outcome, (problem,) = await late.within(0, lambda: wait_for(forever))
    assert outcome is Outcome.FAILED
    assert str(problem) == f"{MOST_LATE} calls are still at work: this one was not begun"
    await late.end()
    assert await late.within(1, lambda: asyncio.sleep(0)) == (Outcome.DONE, ())


@scene
async def test_a_thousand_pods_in_a_row(path: Path) -> None:
    recorder = Recorder()
    # Nobody is late here, however busy the machine is: what is late has tests of its own.
    async with FakeRuntime(path, timeout=60.0) as runtime, plugged(path, recorder, PATIENT):
        await runtime.plugin()
        for number in range(1000):
            await runtime.run_pod(pod(number))
            assert pod(number).id in recorder.pods, "the pod started without us"
            if number >= 100:
                await runtime.stop_pod(pod(number - 100).id)
                await runtime.remove_pod(pod(number - 100).id)
        assert recorder.pods.keys() == runtime.pods.keys()
    assert set(recorder.outcomes(Call.RUN_SANDBOX)) == {Outcome.DONE}
