"""What the agent gives to the plugin, and what it is told.

The runtime makes one call at a time, for all pods of the node, and waits for each answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from nodeagent.errors import NodeagentError
from nodeagent.nri.calls import Call
from nodeagent.nri.pods import Container, Sandbox


class Outcome(StrEnum):
    """What had happened when a call was answered.

    ``late``: the handler is still at work, and the pod goes on without waiting for it.
    ``failed``: it raised.  ``refused``: it was not called, for the pod could not be read.
    """

    DONE = "done"
    LATE = "late"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Answer:
    """A call that was answered, ``seconds`` after it had been read.

    ``problems`` say why it failed or was refused; of a ``Synchronize``, which pods
    and containers were left out.
    """

    call: Call
    outcome: Outcome
    seconds: float = 0.0
    sandbox: Sandbox | None = None
    problems: tuple[BaseException, ...] = ()


@dataclass(frozen=True, slots=True)
class Runtime:
    """Who is at the other end; ``nri`` is empty before NRI 0.12."""

    name: str = ""
    version: str = ""
    nri: str = ""


class Handler(Protocol):
    """The callbacks.

    Each coroutine is awaited before the runtime gets its answer, but no longer than the budget.
    Then the answer is sent all the same, :meth:`answered` says ``late``, and the coroutine goes
    on; so the next call about the same pod may come while it does.  One that raises is answered
    like one that returns: nothing here can keep a pod from starting.  The plain methods must
    neither wait nor raise.
    """

    @property
    def keys(self) -> frozenset[str]:
        """The annotations that are asked for; others are skipped while a pod is read."""

    async def synchronize(self, sandboxes: Sequence[Sandbox], containers: Sequence[Container]) -> None:
        """Take over all that there is, once after each connection.  What is not in it is gone."""

    async def run_sandbox(self, sandbox: Sandbox) -> None:
        """Prepare a pod that has its network, before any of its containers exists."""

    async def start_container(self, sandbox: Sandbox, container: Container) -> None:
        """Prepare for a container that has its cgroup, before its first process begins."""

    async def remove_container(self, sandbox: Sandbox, container: Container) -> None:
        """Take note that a container is gone."""

    async def stop_sandbox(self, sandbox: Sandbox) -> None:
        """Take note that a pod's processes have ended, and its network is about to go.

        It may come more than once, or not at all: containerd forgets at its own restart which
        pods it has told of, and then ends them in silence (2.1.9 measured; 2.4 reads the same).
        """

    async def remove_sandbox(self, sandbox: Sandbox) -> None:
        """Take note that a pod is gone, or never came to be.  As little to be relied on as a stop."""

    def answered(self, answer: Answer) -> None:
        """Take note of an answer that was sent, whatever its outcome."""

    def connected(self, runtime: Runtime) -> None:
        """Take note that the first ``Synchronize`` was answered: from now on pods wait for us."""

    def disconnected(self, error: NodeagentError) -> None:
        """Take note that there is no connection, or no longer: pods start unseen.  Called after each attempt."""
