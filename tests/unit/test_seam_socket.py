"""The socket between agent and programmer: who may talk, what may be asked, and what becomes of everybody else.

The peers here are the hostile ones; `test_programmer_socket.py` of the kernel tests has the real programmer.
"""

import array
import json
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.compile import compile_policy
from nodeagent.errors import InputError, KernelError, NodeagentError, RefusedError, UnreachableError
from nodeagent.model import BackendName, Policy
from nodeagent.netns.inhabited import PodNetns
from nodeagent.programmer import counting_wire as more
from nodeagent.programmer import greeting, listener, wire
from nodeagent.programmer.bounds import MOST_ADDRESSES, MOST_PODS, MOST_SLOTS, Bounds
from nodeagent.programmer.connection import ConnectedProgrammer
from nodeagent.programmer.counting import KernelCounting
from nodeagent.programmer.listener import LARGEST_REQUEST, Listener
from nodeagent.programmer.memory import MemoryProgrammer, Namespace
from nodeagent.programmer.seam import Choice, CountingSettings, Freed, Target
from nodeagent.programmer.serving import Request, Served

UID = os.geteuid()
POD = "8d6a1f4e-0c52-4b7e-9f11-1d2c3b4a5e6f"
RULES = compile_policy(Policy())
PATIENCE = 30.0


class Programming:
    """A programmer without a kernel, listening at `path` in a thread, for the one pod that the node has."""

    def __init__(self, folder: Path, uid: int = UID) -> None:
        self.path = folder / "seam.sock"
        root = folder / "cgroup"
        directory = root / "kubepods" / f"pod{POD}"
        directory.mkdir(parents=True, exist_ok=True)
        self.pod = PodNetns(str(directory), POD)
        self.memory = MemoryProgrammer({self.pod: Namespace()})
        self.bounds = Bounds(CountingSettings(str(root), "/nowhere", "/nowhere"))
        self._listener = Listener(self.path, uid)
        self._stop, self._told = os.pipe()
        served = Served(self.memory, KernelCounting(), self.memory)
        self._thread = threading.Thread(target=self._listener.run, args=(served, self.bounds.allow, self._stop))
        self._thread.start()

    def close(self) -> None:
        os.close(self._told)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._listener.close()
        os.close(self._stop)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Programming]:
    with closing(Programming(tmp_path)) as made:
        yield made


def connect(served: Programming) -> ConnectedProgrammer:
    """Connect as an agent does, once the programmer has noticed the end of the one before."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return ConnectedProgrammer(served.path, UID)
        except UnreachableError as error:
            if "another agent" not in str(error) or time.monotonic() > deadline:
                raise


def raw(served: Programming, *, greets: bool = True) -> socket.socket:
    """Connect by hand, and say who we are."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(str(served.path))
    if greets:
        wire.send(sock, greeting.own_hello())
        assert isinstance(answer(sock), wire.Success)
    return sock


def answer(sock: socket.socket) -> wire.Success | wire.Failure:
    data = wire.receive(sock)
    assert data
    return msgspec.json.decode(data, type=wire.Success | wire.Failure)


def is_closed(sock: socket.socket) -> bool:
    """Wait for the other side's end; say whether it came without another word."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def drip(sock: socket.socket) -> None:
    """Send each byte in time, and the message never."""
    while True:
        sock.sendall(b" ")
        time.sleep(0.01)


def ask_for_ever(sock: socket.socket) -> None:
    while True:
        wire.send(sock, wire.Backends())


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def framed(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


# -- an agent -----------------------------------------------------------------------------------


def test_an_agent_programs_a_pod_of_the_node(served: Programming) -> None:
    with closing(connect(served)) as programmer:
        assert programmer.backends() == dict.fromkeys(BackendName)
        target = Target(PodNetns("/what/the/agent/sees", POD))
        assert programmer.apply(target, RULES, Choice.AUTO).found.plan
        assert not programmer.observe(target, RULES, Choice.AUTO).plan
    assert served.memory.namespaces[served.pod].program, "it was found where the programmer knows it to be"


def test_the_next_agent_finds_what_the_last_one_left(served: Programming) -> None:
    target = Target(served.pod)
    with closing(connect(served)) as first:
        first.apply(target, RULES, Choice.AUTO)
    with closing(connect(served)) as second:
        assert not second.observe(target, RULES, Choice.AUTO).plan


def test_a_programmer_that_comes_back_takes_the_same_place(tmp_path: Path) -> None:
    with closing(Programming(tmp_path)) as first:
        agent = connect(first)
    with closing(agent), pytest.raises(UnreachableError, match="try again"):
        agent.backends()
    with closing(Programming(tmp_path)) as second, closing(connect(second)) as again:
        assert again.backends()


def test_nobody_there_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=r"no programmer at .*: No such file"):
        ConnectedProgrammer(tmp_path / "gone.sock", UID)


def test_a_second_programmer_does_not_take_the_place_of_a_living_one(served: Programming) -> None:
    with pytest.raises(KernelError, match="another programmer listens at"):
        Listener(served.path, UID)
    with closing(connect(served)) as agent:
        assert agent.backends()


def test_the_socket_is_its_owners_and_its_groups(served: Programming) -> None:
    assert stat.filemode(served.path.stat().st_mode) == "srw-rw----"


# -- who may not talk ---------------------------------------------------------------------------


def test_an_agent_of_another_uid_is_refused_unheard(tmp_path: Path) -> None:
    with closing(Programming(tmp_path, uid=UID + 1)) as served:
        with pytest.raises(UnreachableError, match=f"refused: .*has uid {UID}, and only {UID + 1} is talked to"):
            ConnectedProgrammer(served.path, UID)
        with closing(raw(served, greets=False)) as silent:
            failure = answer(silent)
            assert isinstance(failure, wire.Failure)
            assert is_closed(silent)


def test_a_programmer_of_another_uid_is_not_talked_to(served: Programming) -> None:
    with pytest.raises(UnreachableError, match=f"has uid {UID}, and only {UID + 1} is talked to"):
        ConnectedProgrammer(served.path, UID + 1)


def test_a_second_agent_is_turned_away_and_the_first_one_stays(served: Programming) -> None:
    with closing(connect(served)) as first:
        with pytest.raises(UnreachableError, match="another agent is connected"):
            ConnectedProgrammer(served.path, UID)
        assert first.backends()


@pytest.mark.parametrize("field", ["version", "messages"])
def test_another_version_is_an_upgrade_in_progress(
    served: Programming, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    other = msgspec.structs.replace(greeting.own_hello(), **{field: "9.9.9"})
    sock = raw(served, greets=False)
    with closing(sock):
        wire.send(sock, other)
        failure = answer(sock)
        assert isinstance(failure, wire.Failure)
        assert "an upgrade is in progress: the agent that connects is nodeagent" in failure.message
        assert "9.9.9" in failure.message
        assert is_closed(sock)
    monkeypatch.setattr("nodeagent.programmer.listener.compare", lambda *_: None)  # an old one, that lets us in
    monkeypatch.setattr("nodeagent.programmer.listener.own_hello", lambda: other)
    with pytest.raises(UnreachableError, match=r"the programmer at .* is nodeagent .*9\.9\.9"):
        ConnectedProgrammer(served.path, UID)


def test_a_later_versions_greeting_can_be_read() -> None:
    hello = {"type": "hello", "version": "2", "messages": "x", "more": [1]}
    assert msgspec.json.decode(json.dumps(hello), type=wire.Hello).version == "2"


# -- who talks nonsense -------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the programmer lose patience at once."""
    monkeypatch.setattr(listener, "_GREETING_SECONDS", 0.1)
    monkeypatch.setattr(listener, "_MESSAGE_SECONDS", 0.1)


BEFORE_GREETING = (
    pytest.param(b"", id="says nothing"),
    pytest.param(b"\0\0", id="stops in the middle of a length"),
    pytest.param(framed(b"{" * 5000), id="greets at length"),
    pytest.param(framed(b'{"type": "backends"}'), id="asks before it greets"),
    pytest.param(framed(b"\xff\xfe"), id="greets in no UTF-8"),
    pytest.param(struct.pack("!I", 0xFFFFFFFF), id="announces four gigabytes"),
)
AFTER_GREETING = (
    pytest.param(b"\0\0", id="stops in the middle of a length"),
    pytest.param(struct.pack("!I", 100) + b"{", id="stops in the middle of a request"),
    pytest.param(struct.pack("!I", 0), id="sends a request of nothing"),
    pytest.param(struct.pack("!I", LARGEST_REQUEST + 1), id="announces more than is taken"),
)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("said", BEFORE_GREETING)
def test_whoever_does_not_greet_is_closed_and_the_next_one_is_served(served: Programming, said: bytes) -> None:
    with closing(raw(served, greets=False)) as sock:
        sock.sendall(said)
        with suppress(UnreachableError, ConnectionResetError):
            assert isinstance(answer(sock), wire.Failure)
        assert is_closed(sock)
    with closing(connect(served)) as agent:
        assert agent.backends()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("said", AFTER_GREETING)
def test_an_agent_that_does_not_go_on_is_closed_and_the_next_one_is_served(served: Programming, said: bytes) -> None:
    with closing(raw(served)) as sock:
        sock.sendall(said)
        assert is_closed(sock)
    with closing(connect(served)) as agent:
        assert agent.backends()


@pytest.mark.usefixtures("hasty")
def test_an_agent_that_drips_is_closed_when_the_message_should_be_complete(served: Programming) -> None:
    with closing(raw(served)) as sock:
        sock.sendall(struct.pack("!I", 1 << 20))
        with pytest.raises(BrokenPipeError):
            drip(sock)


@pytest.mark.usefixtures("hasty")
def test_an_agent_that_takes_no_answer_is_closed(served: Programming) -> None:
    with closing(raw(served)) as sock:
        sock.settimeout(PATIENCE)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            ask_for_ever(sock)
    with closing(connect(served)) as agent:
        assert agent.backends()


def test_descriptors_that_are_sent_along_are_not_taken(served: Programming) -> None:
    before = descriptors()
    with closing(raw(served)) as sock, open(os.devnull, "rb") as extra:  # noqa: PTH123
        taken = array.array("i", [extra.fileno()] * 16)
        sock.sendmsg([framed(b'{"type":"backends"}')], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, taken)])
        assert isinstance(answer(sock), wire.Success)
        assert descriptors() == before + 3, "ours, the programmer's, and the file"


@pytest.mark.parametrize(
    "request_",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"type":"shell","command":"id"}',
        b'{"type":"backends","more":1}',
        b'{"type":"hello","version":"1","messages":"2"}',
        b'{"type":"apply","target":{"netns":{"cgroup":"/","name":"x"}},"ruleset":"{}","choice":"auto"}',
        b"[" * 100_000,
        b'"' + b"\xff" * 10,
    ],
    ids=lambda data: data[:40].decode("latin-1"),
)
def test_what_is_no_request_is_answered_with_an_error(served: Programming, request_: bytes) -> None:
    with closing(raw(served)) as sock:
        sock.sendall(framed(request_))
        failure = answer(sock)
        assert isinstance(failure, wire.Failure)
        assert failure.error == "InputError"
        wire.send(sock, wire.Backends())
        assert isinstance(answer(sock), wire.Success)


def test_any_bytes_are_answered_or_closed_and_never_the_end(tmp_path: Path) -> None:
    with closing(Programming(tmp_path)) as served:
        held: list[socket.socket] = []

        @given(st.binary(min_size=1, max_size=200))
        def talk(data: bytes) -> None:
            while not held:
                with suppress(UnreachableError, AssertionError):
                    held.append(raw(served))
            held[0].sendall(framed(data))
            assert isinstance(answer(held[0]), wire.Success | wire.Failure)

        talk()
        held[0].close()
        with closing(connect(served)) as agent:
            assert agent.backends()


# -- what may not be asked ----------------------------------------------------------------------

INSIDE = wire.TargetMessage(PodNetns("/", POD))
ELSEWHERE = (
    pytest.param("/proc/1/ns/net", RefusedError, id="a path"),
    pytest.param(1, RefusedError, id="a process"),
    pytest.param(PodNetns("/sys/fs/cgroup", "no-such-pod"), InputError, id="a pod of another node"),
    pytest.param(PodNetns("/sys/fs/cgroup", f"../kubepods/pod{POD}"), InputError, id="a name that climbs"),
    pytest.param(PodNetns("/sys/fs/cgroup", ""), InputError, id="no name"),
    pytest.param(PodNetns("/sys/fs/cgroup", "x" * 100_000), InputError, id="a name without end"),
)
AT_ONE: tuple[Callable[[wire.TargetMessage], Request], ...] = (
    lambda target: wire.Observe(target, None, Choice.AUTO),
    lambda target: wire.Apply(target, "", Choice.AUTO),
    lambda target: wire.Clear(target, now=False),
    more.Watch,
    more.Interfaces,
    more.Tracked,
    lambda target: more.Listening(target, 15001),
    lambda target: more.Guard((target,)),
    lambda target: more.Unguard((target,)),
    lambda target: more.Sweep((more.ExpectedMessage(target, "x", 1, Choice.AUTO),)),
    lambda target: more.Recognise((more.ExpectedMessage(target, "x", 1, Choice.AUTO),), {"x": ""}),
)


@pytest.mark.parametrize("ask", AT_ONE, ids=lambda ask: type(ask(INSIDE)).__name__)
@pytest.mark.parametrize(("netns", "error"), ELSEWHERE)
def test_a_namespace_is_named_by_a_pod_of_the_node_and_by_nothing_else(
    served: Programming,
    netns: str | int | PodNetns,
    error: type[NodeagentError],
    ask: Callable[[wire.TargetMessage], Request],
) -> None:
    with pytest.raises(error):
        served.bounds.allow(ask(wire.TargetMessage(netns)))
    allowed = msgspec.json.encode(served.bounds.allow(ask(INSIDE))).decode()
    assert served.pod.cgroup in allowed, "where it is, the programmer knows"


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(wire.Clear(INSIDE, now=True), id="to reset connections"),
        pytest.param(more.StopCounting("/sys/fs/bpf"), id="to stop counting"),
        pytest.param(more.Guard((INSIDE,) * (MOST_PODS + 1)), id="too many wires"),
        pytest.param(more.Evict(((1, 1),) * (MOST_SLOTS + 1)), id="too many slots"),
        pytest.param(more.Recognise((), {str(n): "" for n in range(MOST_PODS + 1)}), id="too many rule sets"),
        pytest.param(more.Release((more.FreedMessage(1, 1, None),) * (MOST_SLOTS + 1)), id="too many slots to free"),
        pytest.param(
            wire.Clear(wire.TargetMessage(INSIDE.netns, ("::1",) * (MOST_ADDRESSES + 1)), now=False),
            id="too many addresses",
        ),
    ],
)
def test_what_no_agent_asks_for_is_refused(served: Programming, request_: Request) -> None:
    with pytest.raises(RefusedError):
        served.bounds.allow(request_)


def test_where_to_count_is_not_the_agents_to_say(served: Programming) -> None:
    asked = more.StartCounting(CountingSettings("/", "/etc", "/tmp"))  # noqa: S108
    assert served.bounds.allow(asked) == more.StartCounting(served.bounds.counting)


def test_the_rest_is_as_it_was_asked(served: Programming) -> None:
    freed = more.FreedMessage.of(Freed(1, 1, None))
    for request in (wire.Backends(), more.Slots(), more.Events(), more.Evict(((1, 2),)), more.Release((freed,))):
        assert served.bounds.allow(request) is request


def test_every_verb_is_a_message_of_the_seam() -> None:
    """A verb that is added shows up here, and its author has read what an agent may ask for."""
    tags = {kind.__struct_config__.tag for kind in Request.__args__ if hasattr(kind, "__struct_config__")}
    for union in Request.__args__:
        tags |= {kind.__struct_config__.tag for kind in getattr(union, "__args__", ())}
    rules = {
        "observe",
        "apply",
        "clear",
        "backends",
        "recognise",
        "sweep",
        "watch",
        "interfaces",
        "prepare",
        "tracked",
        "listening",
        "events",
    }
    counting = {
        "start_counting",
        "stop_counting",
        "enrol",
        "enrolled",
        "set_epoch",
        "forget",
        "evict",
        "release",
        "slots",
    }
    assert tags == rules | counting | {"guard", "unguard", "counting_health", "runtime"}


def test_a_refusal_reaches_the_agent_as_what_it_is(served: Programming) -> None:
    with closing(connect(served)) as agent:
        with pytest.raises(RefusedError, match="no path and no process"):
            agent.observe(Target("/proc/1/ns/net"), None, Choice.AUTO)
        with pytest.raises(InputError, match="no cgroup v2 directory"):
            agent.apply(replace(Target(served.pod), netns=PodNetns("/", "gone")), RULES, Choice.AUTO)
        assert agent.backends()
