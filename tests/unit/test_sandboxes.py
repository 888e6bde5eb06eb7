"""What the agent makes of a container runtime that is not there, or no longer."""

from collections.abc import Callable
from unittest.mock import Mock

import pytest

from nodeagent.agent.sandboxes import Ears, Place, Sandboxes
from nodeagent.errors import NodeagentError, UnreachableError
from nodeagent.nri import AbsentError, Runtime

ABSENT = AbsentError("/var/run/nri/nri.sock is not there")


@pytest.fixture
def sandboxes() -> Sandboxes:
    async def attend(_key: object) -> None:
        raise AssertionError("nobody waits here")

    ears = Ears(tell=lambda _snapshot: None, nothing=lambda: None, attend=attend, serve=attend)
    return Sandboxes(Place("nowhere"), ears, Mock(), Mock(), Mock())


def never(_sandboxes: Sandboxes) -> None:
    """Do nothing: the runtime was never heard."""


def once(sandboxes: Sandboxes) -> None:
    """Let the runtime be heard, and restart."""
    sandboxes.connected(Runtime("containerd", "v2"))
    sandboxes.disconnected(UnreachableError("the container runtime closed the connection"))


@pytest.mark.parametrize(
    ("before", "error", "problem"),
    [
        (never, ABSENT, None),
        (never, UnreachableError("Connection refused"), "Connection refused"),
        (once, ABSENT, str(ABSENT)),
    ],
)
def test_a_socket_that_never_was_is_no_trouble(
    sandboxes: Sandboxes, before: Callable[[Sandboxes], None], error: NodeagentError, problem: str | None
) -> None:
    before(sandboxes)
    sandboxes.disconnected(error)
    assert sandboxes.problem == problem
    assert sandboxes.runtime is None
