"""A handler that keeps what it is told, and a way to wait until it has been told."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from nodeagent.errors import NodeagentError
from nodeagent.nri import Answer, Call, Container, Outcome, Runtime, Sandbox
from nodeagent.nri.pods import KEYS

Hook = Callable[[Sandbox], Awaitable[None]]


async def nothing(_sandbox: Sandbox) -> None:
    """Do nothing with a pod, at once."""


class Recorder:
    """The pods and containers that there are, by ID, as far as a plugin was told."""

    def __init__(self, run: Hook = nothing) -> None:
        self.pods: dict[str, Sandbox] = {}
        self.containers: dict[str, Container] = {}
        self.started: list[Container] = []
        self.calls: list[str] = []
        self.answers: list[Answer] = []
        self.runtimes: list[Runtime] = []
        self.errors: list[NodeagentError] = []
        self._run = run
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[["Recorder"], object]) -> None:
        while not condition(self):
            self._changed.clear()
            await self._changed.wait()

    @property
    def keys(self) -> frozenset[str]:
        return KEYS

    def outcomes(self, call: Call) -> list[Outcome]:
        return [answer.outcome for answer in self.answers if answer.call is call]

    async def synchronize(self, sandboxes: Sequence[Sandbox], containers: Sequence[Container]) -> None:
        self.pods = {sandbox.id: sandbox for sandbox in sandboxes}
        self.containers = {container.id: container for container in containers}
        self._note("synchronize")

    async def run_sandbox(self, sandbox: Sandbox) -> None:
        await self._run(sandbox)
        self.pods[sandbox.id] = sandbox
        self._note(f"run {sandbox.name}")

    async def start_container(self, sandbox: Sandbox, container: Container) -> None:
        self.containers[container.id] = container
        self.started.append(container)
        self._note(f"start {sandbox.name}/{container.name}")

    async def remove_container(self, sandbox: Sandbox, container: Container) -> None:
        self.containers.pop(container.id, None)
        self._note(f"remove {sandbox.name}/{container.name}")

    async def stop_sandbox(self, sandbox: Sandbox) -> None:
        self._note(f"stop {sandbox.name}")

    async def remove_sandbox(self, sandbox: Sandbox) -> None:
        self.pods.pop(sandbox.id, None)
        self._note(f"remove {sandbox.name}")

    def answered(self, answer: Answer) -> None:
        self.answers.append(answer)
        self._changed.set()

    def connected(self, runtime: Runtime) -> None:
        self.runtimes.append(runtime)
        self._changed.set()

    def disconnected(self, error: NodeagentError) -> None:
        self.errors.append(error)
        self._changed.set()

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self._changed.set()
