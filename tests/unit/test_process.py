"""The programmer's child answers every request, whatever happens to one of them."""

import socket
from collections.abc import Iterator

import msgspec
import pytest
import structlog

from nodeagent.errors import InternalError, KernelError
from nodeagent.model import BackendName, RuleSet
from nodeagent.programmer import wire
from nodeagent.programmer.conversation import serve
from nodeagent.programmer.counting import KernelCounting
from nodeagent.programmer.memory import MemoryProgrammer
from nodeagent.programmer.seam import Choice, Observation, Target
from nodeagent.programmer.serving import Served


class Faulty(MemoryProgrammer):
    """A programmer that meets *error* when it observes."""

    def __init__(self, error: object) -> None:
        super().__init__()
        self.error = error

    def observe(self, target: Target, ruleset: RuleSet | None, choice: Choice) -> Observation:  # noqa: ARG002  # the seam's
        if isinstance(self.error, BaseException):
            raise self.error
        return self.error  # type: ignore[return-value]  # that is the fault


@pytest.fixture
def asked() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two requests wait in the child's socket: an observation, and then a harmless one."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, wire.Observe(wire.TargetMessage("/pod"), None, Choice.AUTO))
        wire.send(ours, wire.Backends())
        ours.shutdown(socket.SHUT_WR)
        yield ours, theirs


def answer(sock: socket.socket) -> wire.Success | wire.Failure:
    data = wire.receive(sock)
    assert data
    return msgspec.json.decode(data, type=wire.Success | wire.Failure)


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        pytest.param(KeyError("chain"), "KeyError('chain')", id="a key that is missing"),
        pytest.param(AssertionError(), "AssertionError()", id="an assertion that does not hold"),
        pytest.param(RecursionError("too deep"), "RecursionError", id="a recursion without end"),
        pytest.param(MemoryError(), "MemoryError()", id="no memory"),
        pytest.param(ValueError("line\nbreak"), r"line\\nbreak", id="a message of two lines stays one line"),
        pytest.param(object(), "TypeError", id="a result that cannot be encoded"),
    ],
)
def test_a_fault_of_ours_is_answered_logged_and_survived(
    fault: object, names: str, asked: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = asked
    with structlog.testing.capture_logs() as events:
        serve(theirs, Served(Faulty(fault), KernelCounting(), MemoryProgrammer()))
    failure = answer(ours)
    assert isinstance(failure, wire.Failure)
    with pytest.raises(InternalError, match="internal error of the programmer"):
        raise wire.error_of(failure)
    assert names in failure.message
    assert "\n" not in failure.message
    (logged,) = [event for event in events if event["event"] == "internal error"]
    assert (logged["log_level"], logged["verb"], logged["netns"]) == ("error", "observe", "/pod")
    assert "conversation.py:" in logged["where"]
    second = answer(ours)
    assert isinstance(second, wire.Success)
    assert msgspec.json.decode(second.result) == dict.fromkeys(BackendName)


def test_what_the_kernel_says_is_no_fault_of_ours(asked: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = asked
    serve(theirs, Served(Faulty(PermissionError(1, "Operation not permitted")), KernelCounting(), MemoryProgrammer()))
    failure = answer(ours)
    assert isinstance(failure, wire.Failure)
    assert failure.error == KernelError.__name__
