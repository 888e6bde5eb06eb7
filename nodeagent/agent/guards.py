"""Wires of counted pods get a guard, after everything else: nothing waits for it, and nothing depends on it."""

import asyncio
import time
from collections.abc import Callable, Sequence
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
AGAIN_SECONDS: Final = 60.0
_AT_ONCE: Final = 8
"""Pods a question to the programmer: others are served in between."""


class Guards:
    """Guards the pods of *roster*, each once for each time that the kernel was told of it.

    What was unavailable may have been for a moment: it is tried again now and then.
    """

    def __init__(
        self, worker: Worker, enrolment: Enrolment, roster: Roster, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._worker, self._enrolment, self._roster = worker, enrolment, roster
        self.is_any_attached = False
        self._clock, self._again = clock, clock() + AGAIN_SECONDS
        """Whether a wire was guarded since the agent's start: else nobody knows what passed unseen."""

    async def tick(self) -> None:
        """Guard those that lack it, and wait for the next time."""
        is_again = self._clock() >= self._again
        if is_again:
            self._again = self._clock() + AGAIN_SECONDS
        try:
            await self._worker.rush.let_by()
            await self._unguard()
            known = [pod for pod in self._roster if pod.counted.told and pod.is_known]
            await self._guard([pod for pod in known if not self._is_decided(pod, is_again=is_again)])
        except UnreachableError:
            pass  # a new programmer will be asked
        await asyncio.sleep(_PERIOD)

    async def _guard(self, pods: Sequence[Pod]) -> None:
        for start in range(0, len(pods), _AT_ONCE):
            await self._worker.rush.let_by()
            if self._enrolment.problem:
                return
            part = pods[start : start + _AT_ONCE]
            for pod, answer in zip(part, await self._ask([pod.target for pod in part]), strict=True):
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

    def _is_decided(self, pod: Pod, *, is_again: bool) -> bool:
        if pod.guard is None or pod.guard.state is GuardState.PENDING:
            return False
        return pod.guard.state is GuardState.ATTACHED or not is_again

    def _take(self, pod: Pod, answer: Guarded) -> None:
        before, pod.guard = pod.guard, answer
        if answer.state is GuardState.ATTACHED:
            self.is_any_attached = True
        elif answer.state is GuardState.UNAVAILABLE and answer != before:
            structlog.get_logger().info("its wire is not guarded", pod=str(pod.key), why=answer.why)
