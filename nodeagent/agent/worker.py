"""One thread that speaks with the programmer, which is started again when it has died.

The programmer answers one question at a time, so one thread is enough, and the loop never waits
for it.  A programmer that dies loses nothing: rules and counters are the kernel's.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import structlog

from nodeagent.agent.queue import backoff
from nodeagent.errors import NodeagentError, UnreachableError
from nodeagent.programmer.seam import Counting, Programmer, Watching

P = ParamSpec("P")
R = TypeVar("R")


class Privileged(Programmer, Watching, Counting, Protocol):
    """All verbs of the seam, by a process that may die."""

    def close(self) -> None:
        """End it."""


class Worker:
    """Asks the programmer that *start* starts; ``started`` is called, on the loop, for each new one."""

    def __init__(self, start: Callable[[], Privileged], clock: Callable[[], float] = time.monotonic) -> None:
        self._start, self._clock = start, clock
        self.started: Callable[[], None] = lambda: None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="programmer")
        self._programmer: Privileged | None = None
        self._failures = 0
        self._not_before = 0.0
        self.generation = 0
        """How many programmers were started so far."""

    async def ask(self, verb: Callable[Concatenate[Privileged, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what *verb* of the programmer returns, or raise what it raises.

        Raises:
            UnreachableError: it died meanwhile, or could not be started again yet.
        """
        before = self.generation
        call = partial(self._call, lambda programmer: verb(programmer, *args, **kwargs))
        try:
            result: R = await asyncio.get_running_loop().run_in_executor(self._thread, call)
            return result
        finally:
            if self.generation != before:
                self.started()

    async def close(self) -> None:
        """End the programmer; what it is doing is finished first."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._drop)
        self._thread.shutdown()

    # -- in the thread --------------------------------------------------------------------------

    def _call(self, verb: Callable[[Privileged], R]) -> R:
        programmer = self._programmer or self._restart()
        try:
            return verb(programmer)
        except UnreachableError:
            self._drop()
            self._failed()
            raise

    def _restart(self) -> Privileged:
        if self._clock() < self._not_before:
            raise UnreachableError(f"the programmer died {self._failures} times: it is started again in a moment")
        try:
            self._programmer = self._start()
        except NodeagentError:
            self._failed()
            raise
        self.generation += 1
        if self.generation > 1:
            structlog.get_logger().warning("the programmer was started again", times=self.generation - 1)
        return self._programmer

    def _failed(self) -> None:
        recent = self._clock() - self._not_before < backoff(30)
        self._failures = self._failures + 1 if recent else 1
        self._not_before = self._clock() + backoff(self._failures)

    def _drop(self) -> None:
        if self._programmer:
            with suppress(OSError):
                self._programmer.close()
        self._programmer = None
