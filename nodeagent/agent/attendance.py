"""A programmer that was started, for the first time or again, is told all that it has to know.

Nothing is programmed before counting has begun, so that it sees the first packet of every pod;
but interception waits for it no longer than :data:`PATIENCE`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from nodeagent.agent.census import Census
from nodeagent.agent.drift import Drift
from nodeagent.agent.enrolment import Enrolment
from nodeagent.agent.facts import Facts
from nodeagent.agent.queue import Queue, backoff
from nodeagent.agent.roster import Roster
from nodeagent.agent.worker import Worker
from nodeagent.errors import BusyError, KernelError, UnreachableError
from nodeagent.model import PodKey
from nodeagent.programmer.seam import CountingSettings

PATIENCE: Final = 3.0
"""Seconds that pods wait for counting to begin: it takes milliseconds, unless it has to be compiled."""

_RETRY_SECONDS: Final = 30.0
_COMPILING_SECONDS: Final = (0.1, 2.0)
"""Between two questions while it is compiled: at first, so that a cached program costs nothing, and at most."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What has to do with the programmer."""

    worker: Worker
    enrolment: Enrolment
    census: Census
    drift: Drift
    roster: Roster
    queue: Queue[PodKey]
    facts: Facts


class Attendance:
    """``ready`` is set while a programmer is there that knows all it has to."""

    def __init__(self, parts: Parts, settings: CountingSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._parts, self._settings, self._clock = parts, settings, clock
        self._died = asyncio.Event()
        self._failures = 0
        self._is_compiling = False
        self.ready = asyncio.Event()
        self.problem = "it is being started"
        """Why there is no programmer, while there is none."""
        parts.worker.died = self._lose

    def _lose(self) -> None:
        """Take note that the programmer died: nobody asks it anything until another one is ready."""
        self.ready.clear()
        self._died.set()
        self.problem = "it died, and is being started again"
        self._parts.enrolment.problem = "the programmer died, and is being started again"

    async def run(self) -> None:
        """Attend to a programmer that was just started, and to each that comes after it."""
        await self._attend(self._prepare)
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_SECONDS):
                    await self._died.wait()
            if self._died.is_set():
                self._died.clear()
                await self._attend(self._replace)
            elif self._parts.enrolment.problem:
                await self._attend(self._count_all)

    async def _attend(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except (UnreachableError, KernelError) as error:
            self._failures += 1
            self.problem = str(error)
            structlog.get_logger().error("no programmer", error=str(error), times=self._failures)
            await asyncio.sleep(backoff(self._failures))
            self._died.set()
        else:
            self._failures = 0

    async def _replace(self) -> None:
        await self._parts.worker.start()
        self._parts.facts.programmer_restarts += 1
        structlog.get_logger().warning("the programmer had gone: another one is there")
        await self._prepare()

    async def _prepare(self) -> None:
        """Bring a new programmer to where the last one was."""
        await self._start_counting(self._clock() + PATIENCE)
        try:
            await self._parts.drift.listen()
        except KernelError as error:
            structlog.get_logger().warning("no events: drift is found by the sweep", error=str(error))
        self._introduce_all()
        self.ready.set()
        if self._is_compiling:
            await self._count_all()

    async def _count_all(self) -> None:
        if await self._start_counting(float("inf")):
            self._introduce_all()

    def _introduce_all(self) -> None:
        """Let every pod be told to the programmer again."""
        for pod in self._parts.roster:
            pod.counted.told, pod.watched, pod.seen, pod.guard = None, None, None, None
            self._parts.queue.add(pod.key)

    async def _start_counting(self, deadline: float) -> bool:
        """Start it, or say why not; wait until *deadline* while it is being compiled."""
        pause, longest = _COMPILING_SECONDS
        while not await self._try_counting():
            if not self._is_compiling or self._clock() > deadline:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
        return True

    async def _try_counting(self) -> bool:
        enrolment = self._parts.enrolment
        try:
            await self._parts.worker.ask(lambda p: p.start_counting(self._settings))
            await self._parts.census.open()
            await enrolment.learn()
        except KernelError as error:
            self._is_compiling = isinstance(error, BusyError)
            if enrolment.problem != str(error):
                log = structlog.get_logger()
                (log.info if self._is_compiling else log.error)("nothing is counted", error=str(error))
            enrolment.problem = str(error)
            return False
        enrolment.problem, self._is_compiling = None, False
        return True
