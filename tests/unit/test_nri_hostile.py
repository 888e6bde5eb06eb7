"""A socket that says anything at all: one clear error, a new connection, and never an end of the plugin."""

import asyncio
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeagent.nri import Settings, messages
from nodeagent.nri.calls import MOST
from nodeagent.nri.frames import Frame, Kind, Service, encode
from nodeagent.nri.session import MOST_PARTS
from tests.nri.hostile import answer, inventory, request, speaker
from tests.nri.pods import pod
from tests.nri.recorder import Recorder
from tests.nri.runtime import Runtime as FakeRuntime
from tests.nri.stage import plugged, scene

IMPATIENT = Settings(patience=0.1, first_delay=0.001, longest_delay=0.01)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        pytest.param(b"", "the container runtime closed the connection", id="nothing"),
        pytest.param(b"\0\0", "the container runtime closed the connection", id="half a header"),
        pytest.param(
            struct.pack(">II", 1, 2**31), "a piece of 2147483648 bytes: at most 4194314 are allowed", id="a huge piece"
        ),
        pytest.param(
            encode(Frame(Service.PLUGIN, 1, Kind.REQUEST, b"\xff" * 9)), "9 bytes that are no Request", id="no protobuf"
        ),
        pytest.param(
            encode(Frame(Service.PLUGIN, 1, Kind.RESPONSE, b"")),
            "a response on stream 1, where we have asked nothing",
            id="an answer to nothing",
        ),
        pytest.param(
            encode(Frame(Service.RUNTIME, 1, Kind.REQUEST, b"")),
            "a request on stream 1, where an answer was expected",
            id="a question to itself",
        ),
        pytest.param(
            answer(stream=3), "a response on stream 3, where an answer was expected", id="an answer to another question"
        ),
        pytest.param(
            answer(2, "no\n\x1b[2J"),
            "the container runtime refuses the plugin: no\\n\\x1b[2J (2)",
            id="the plugin refused",
        ),
        pytest.param(request("RunPodSandbox", b"\x0a\xff"), "2 bytes that are no EventRequest", id="a broken event"),
        pytest.param(request("StateChange", b"\x12\x7f"), "2 bytes that are no StateChangeEvent", id="a broken change"),
        pytest.param(request("Configure", b"\x12\x01"), "2 bytes that are no ConfigureRequest", id="a broken greeting"),
        pytest.param(
            request("Synchronize", inventory(pods=[pod(1).SerializeToString(), b"\x0a"])),
            "1 bytes that are no PodSandbox",
            id="a broken pod among whole ones",
        ),
        pytest.param(
            request("RunPodSandbox", b"\x0a\x02\x12\x00" + b"\x0a\x04\x0a\x02\xff\xfe"),
            "10 bytes that are no EventRequest",
            id="a text that is none",
        ),
        pytest.param(
            request("Synchronize", inventory(pods=[b""] * (MOST + 1))),
            f"{MOST + 1} pods or containers: no more than {MOST} of each are believed",
            id="more pods than there are",
        ),
        pytest.param(
            request("Synchronize", inventory(containers=[b""] * 1_000_000)),
            f"1000000 pods or containers: no more than {MOST} of each are believed",
            id="a million containers",
        ),
        pytest.param(
            b"".join(request("Synchronize", inventory(more=True), 2 * n + 1) for n in range(MOST_PARTS + 1)),
            f"what there is comes in more than {MOST_PARTS} parts",
            id="an inventory without end",
        ),
        pytest.param(
            request("RunPodSandbox", b"\x0a\x7f" * 60), "120 bytes that are no EventRequest", id="lengths that lie"
        ),
        pytest.param(
            request("RunPodSandbox", b"\x13" * 1000), "1000 bytes that are no EventRequest", id="groups in groups"
        ),
    ],
)
@scene
async def test_each_nonsense_is_one_error_and_a_new_connection(tmp_path: Path, said: bytes, error: str) -> None:
    path, recorder = tmp_path / "nri.sock", Recorder()
    async with speaker(path, [said], stays=len(said) > 2) as heard, plugged(path, recorder):
        await heard.wait()
    assert [str(item) for item in recorder.errors] == [error]
    assert (recorder.calls, recorder.answers) == ([], [])


@pytest.mark.parametrize(
    ("said", "error"),
    [
        pytest.param(b"", "the container runtime is silent: 0.1 s without being synchronized", id="from the start"),
        pytest.param(
            answer() + request("Configure"),
            "the container runtime is silent: 0.1 s without being synchronized",
            id="after the greeting",
        ),
        pytest.param(
            request("Synchronize") + b"\0\0\0\1",
            "the container runtime is silent: 0.1 s without the rest of a message",
            id="in the middle of a message",
        ),
    ],
)
@scene
async def test_silence_is_an_error_where_something_must_come(tmp_path: Path, said: bytes, error: str) -> None:
    path, recorder = tmp_path / "nri.sock", Recorder()
    async with speaker(path, [said], stays=True) as heard, plugged(path, recorder, IMPATIENT):
        await heard.wait()
        assert str(recorder.errors[0]) == error


@scene
async def test_silence_is_peace_once_all_is_told(tmp_path: Path) -> None:
    path, recorder = tmp_path / "nri.sock", Recorder()
    async with FakeRuntime(path) as runtime, plugged(path, recorder, IMPATIENT):
        await runtime.plugin()
        await asyncio.sleep(3 * IMPATIENT.patience)
        await runtime.run_pod(pod(1))
        assert recorder.calls == ["synchronize", "run web-1"]


whole = st.sampled_from(
    [
        answer(),
        request("Configure"),
        request("Synchronize", inventory(pods=[pod(1).SerializeToString()])),
        request("RunPodSandbox", messages.EventRequest(pod=pod(2)).SerializeToString()),
        request("StateChange", messages.StateChangeEvent(event=1, pod=pod(3)).SerializeToString()),
    ]
)
broken = st.builds(
    lambda data, place, byte: data[: place % len(data)] + bytes([byte]) + data[place % len(data) + 1 :],
    whole,
    st.integers(0, 2000),
    st.integers(0, 255),
)
cut = st.builds(lambda data, place: data[: place % len(data)], whole, st.integers(0, 2000))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(whole | broken | cut | st.binary(max_size=40), max_size=6).map(b"".join), max_size=4))
def test_whatever_is_said_the_next_runtime_is_served(tmp_path: Path, said: list[bytes]) -> None:
    path = tmp_path / "nri.sock"

    @scene
    async def served() -> None:
        recorder = Recorder()
        async with plugged(path, recorder):
            async with speaker(path, said) as heard:
                await heard.wait()
            async with FakeRuntime(path) as runtime:
                await runtime.plugin()
                await runtime.run_pod(pod(9))
                assert recorder.pods.keys() == {pod(9).id}
        assert len(recorder.errors) >= len(said)
        for error in recorder.errors:
            assert str(error).isprintable()

    served()
