"""Between the agent and the runtime's socket: a plugin that listens is not hindered, and nothing else goes by."""

import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.nri import messages
from nodeagent.nri.calls import SUBSCRIPTION as SUBSCRIPTION_BITS
from nodeagent.nri.frames import Frame, Kind, Service, encode
from nodeagent.nri.plugin import Dial, connect
from nodeagent.nri.session import RUNTIME, UNIMPLEMENTED
from nodeagent.programmer.relay import ANSWERS, REGISTRATION, SUBSCRIPTION, Sieve, relay
from tests.nri.hostile import answer, request
from tests.nri.pods import container, pod
from tests.nri.recorder import Recorder
from tests.nri.runtime import Generations
from tests.nri.runtime import Runtime as FakeRuntime
from tests.nri.stage import plugged, scene

PATIENCE = 30.0


def response(payload: bytes = b"", code: int = 0, stream: int = 3) -> bytes:
    status = messages.Status(code=code) if code else None
    message = messages.Response(payload=payload, status=status).SerializeToString()
    return encode(Frame(Service.PLUGIN, stream, Kind.RESPONSE, message))


def call(method: str, payload: bytes = b"") -> bytes:
    message = messages.Request(service=RUNTIME, method=method, payload=payload, timeout_nano=30_000_000_000)
    return encode(Frame(Service.RUNTIME, 1, Kind.REQUEST, message.SerializeToString()))


def registration(name: str, index: str) -> bytes:
    return call(
        "RegisterPlugin", messages.RegisterPluginRequest(plugin_name=name, plugin_idx=index).SerializeToString()
    )


def subscription(events: int, stream: int = 1) -> bytes:
    return response(messages.ConfigureResponse(events=events).SerializeToString(), stream=stream)


SUBSCRIBES = subscription(SUBSCRIPTION_BITS)
CREATE_CONTAINER = 1 << 3
OURS = registration("nodeagent", "10")
ADJUSTS = b"\x0a\x0b\x12\x09\x0a\x04/etc\x12\x01/"
"""A CreateContainerResponse with an adjustment: a mount of the host's."""

REFUSED = {
    "another plugin's name": registration("other", "10"),
    "another place among the plugins": registration("nodeagent", "99"),
    "a subscription that may change containers": subscription(SUBSCRIPTION_BITS | CREATE_CONTAINER),
    "an answer that changes a container": response(ADJUSTS),
    "an answer that keeps a pod from starting": response(code=13),
    "an update of containers that nobody asked for": call("UpdateContainers", ADJUSTS),
    "a second registration": OURS,
    "a subscription that answers nothing, before the one that counts": subscription(SUBSCRIPTION_BITS, stream=3),
    "an empty answer to the first question": subscription(0),
    "a request to the plugin": request("Configure"),
    "an answer of the runtime's": answer(),
    "a registration as an answer": OURS[:16] + b"\x02" + OURS[17:],
    "flags": OURS[:17] + b"\x01" + OURS[18:],
    "another connection of the mux": b"\0\0\0\x03" + OURS[4:],
    "a piece of a frame": OURS[:4] + (len(OURS) - 9).to_bytes(4, "big") + OURS[8:],
    "more than anybody says": response(b"x" * 1000),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_listener_does_not_say_goes_nowhere(name: str) -> None:
    for before in ([], [OURS], [OURS, SUBSCRIBES]):
        passed: list[bytes] = []
        if name == "a second registration" and not before:
            continue
        with pytest.raises(PermissionError, match="no agent of ours"):
            passed.extend(Sieve().pass_on(b"".join(before) + REFUSED[name]))
        assert passed == before


def test_an_empty_answer_to_the_first_question_would_subscribe_to_all_that_there_is() -> None:
    with pytest.raises(PermissionError, match="no agent of ours"):
        list(Sieve().pass_on(OURS + subscription(0)))
    assert len(list(Sieve().pass_on(OURS + SUBSCRIBES + subscription(0, stream=3)))) == 3  # as an answer later


def frames_of(sayings: Iterable[tuple[int, int, bytes]]) -> list[bytes]:
    return [_frame(*said) for said in sorted(sayings)]


def _frame(to: int, kind: int, message: bytes) -> bytes:
    """Return what says that: of either side's first request, or of a later one."""
    stream = 1 if (to, kind, message) in {REGISTRATION, SUBSCRIPTION} else 3
    return encode(Frame(Service(to), stream, Kind(kind), message))


@given(st.lists(st.sampled_from(frames_of(ANSWERS))), st.binary(max_size=40), st.integers(1, 100))
def test_in_whatever_portions_what_a_listener_says_goes_on(answers: list[bytes], tail: bytes, portion: int) -> None:
    frames = [*frames_of({REGISTRATION}), *frames_of({SUBSCRIPTION}), *answers]
    said, sieve = b"".join(frames) + tail, Sieve()
    passed: list[bytes] = []
    with suppress(PermissionError):
        for start in range(0, len(said), portion):
            passed += sieve.pass_on(said[start : start + portion])
    assert passed[: len(frames)] == frames
    assert {frame[18:] for frame in passed} <= {message for _, _, message in {REGISTRATION, SUBSCRIPTION, *ANSWERS}}


@contextmanager
def relayed(path: Path) -> Iterator[Dial]:
    """Give a way to dial that leads through a relay, in a thread; each ends with its connection."""
    threads: list[threading.Thread] = []

    async def dial(_name: str) -> socket.socket:
        runtime = await connect(str(path))
        runtime.settimeout(None)
        ours, theirs = socket.socketpair()

        def run() -> None:
            with runtime, theirs, suppress(OSError):
                relay(runtime, theirs)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return ours

    yield dial
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.mark.parametrize("generation", Generations, ids=lambda generation: generation.value.name)
@scene
async def test_a_plugin_does_not_notice_the_relay(tmp_path: Path, generation: Generations) -> None:
    """Inventories in parts, both generations, methods that are unknown, and the runtime's end."""
    path, recorder = tmp_path / "nri.sock", Recorder()
    with relayed(path) as dial:
        async with FakeRuntime(path, generation) as runtime:
            many = [pod(number, excludeOutboundPorts="1," * 20_000) for number in range(200)]
            runtime.pods = {each.id: each for each in many}
            runtime.empty_parts = 3
            async with plugged(path, recorder, dial=dial):
                plugin = await runtime.plugin()
                assert recorder.pods.keys() == runtime.pods.keys()
                new = pod(201)
                await runtime.run_pod(new)
                await runtime.run_container(container(1, new))
                assert (await plugin.call("OfALaterVersion", b"")).status.code == UNIMPLEMENTED
                await runtime.stop_pod(new.id)
                await runtime.kill()
                await recorder.until(lambda told: told.errors)
                await runtime.start()
                await runtime.plugin()
    assert recorder.calls[-4:-1] == ["run web-201", "start web-201/app", "stop web-201"]
    assert runtime.dropped == 0
