"""Wires of counted pods get a guard, after everything else: nothing waits for it, and nothing depends on it."""

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from nodeagent.agent.enrolment import Enrolment
from nodeagent.agent.pod import Pod
from nodeagent.agent.roster import Roster
from nodeagent.agent.worker import Worker
from nodeagent.errors import KernelError, UnreachableError
from nodeagent.programmer.seam import Guarded, GuardState, Target

_PERIOD: Final = 1.0
_AT_ONCE: Final = 8
"""Pods a question to the programmer: others are served in between."""


class Guards:
    """Guards the pods of *roster*, each once for each time that the kernel was told of it."""

    def __init__(self, worker: Worker, enrolment: Enrolment, roster: Roster) -> None:
        self._worker, self._enrolment, self._roster = worker, enrolment, roster
        self.is_any_attached = False
        """Whether a wire was guarded since the agent's start: else nobody knows what passed unseen."""

    async def tick(self) -> None:
        """Guard those that lack it, and wait for the next time."""
        try:
            await self._worker.rush.let_by()
            await self._unguard()
            await self._worker.rush.let_by()
            await self._guard()
        except UnreachableError:
            pass  # a new programmer will be asked
        await asyncio.sleep(_PERIOD)

    async def _guard(self) -> None:
        known = [pod for pod in self._roster if pod.counted.told and pod.is_known]
        pods = [pod for pod in known if not self._is_decided(pod)][:_AT_ONCE]
        if not pods or self._enrolment.problem:
            return
        answers = await self._ask([pod.target for pod in pods])
        for pod, answer in zip(pods, answers, strict=True):
            self._take(pod, answer)

    async def _ask(self, targets: list[Target]) -> list[Guarded]:
        try:
            return await self._worker.ask(lambda p: p.guard(targets))
        except KernelError as error:
            return [Guarded(GuardState.UNAVAILABLE, str(error))] * len(targets)

    async def _unguard(self) -> None:
        gone = [pod for pod in self._roster if pod.guard and not pod.counted.id]
        if gone:
            with suppress(KernelError):  # it goes with its device
                await self._worker.ask(lambda p: p.unguard([pod.target for pod in gone]))
        for pod in gone:
            pod.guard = None

    def _is_decided(self, pod: Pod) -> bool:
        return pod.guard is not None and pod.guard.state is not GuardState.PENDING

    def _take(self, pod: Pod, answer: Guarded) -> None:
        pod.guard = answer
        if answer.state is GuardState.ATTACHED:
            self.is_any_attached = True
        elif answer.state is GuardState.UNAVAILABLE:
            structlog.get_logger().info("its wire is not guarded", pod=str(pod.key), why=answer.why)
