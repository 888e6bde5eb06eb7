"""One thread that speaks with the programmer.

The programmer answers one question at a time, so one thread is enough, and the loop never waits
for it.  A programmer that dies loses nothing: rules and counters are the kernel's.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, Protocol, TypeVar

from nodeagent.agent.rush import Rush
from nodeagent.errors import BusyError, UnreachableError
from nodeagent.programmer.seam import Counting, Guarding, Hearing, Programmer, Watching

R = TypeVar("R")

AGAIN_SECONDS: Final = 0.02
"""Between two questions to a programmer that waits for the kernel: a grace period takes about as long."""
_MOST_TRIES: Final = 250


class Privileged(Programmer, Watching, Guarding, Hearing, Counting, Protocol):
    """All verbs of the seam, by a process that may die."""

    @property
    def pid(self) -> int:
        """Process ID, as we see it."""

    def close(self) -> None:
        """End it."""


class _DiedError(UnreachableError):
    """It died of this very question: told once for each programmer."""


class Worker:
    """Asks the programmer that *start* starts.  ``died`` is called, on the loop, when it no longer answers.

    It is not started again by itself: whoever does that tells the new one what it has to know, before
    anybody else's question reaches it.
    """

    def __init__(self, start: Callable[[], Privileged]) -> None:
        self._start = start
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="programmer")
        self._programmer: Privileged | None = None
        self.rush = Rush()
        """Whether the container runtime waits for an answer: what can wait, should."""
        self.died: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int | None:
        """The programmer's process ID; None while there is none."""
        programmer = self._programmer
        return programmer.pid if programmer else None

    async def start(self) -> None:
        """Start a programmer in the place of one that died.

        Raises:
            KernelError: it lacks the privilege.
            UnreachableError: it died at once.
        """
        await self._run(self._restart)

    async def ask(self, verb: Callable[[Privileged], R]) -> R:
        """Return what *verb* of the programmer returns, or raise what it raises.

        Raises:
            UnreachableError: it died meanwhile, or is not started yet.
        """
        try:
            return await self._run(lambda: self._call(verb))
        except _DiedError:
            self.died()
            raise

    async def insist(self, verb: Callable[[Privileged], None]) -> None:
        """Ask until the programmer is no longer busy with just that, for some seconds; others are served meanwhile.

        Raises:
            BusyError: it still is.
            NodeagentError: as :meth:`ask`.
        """
        for _ in range(_MOST_TRIES):
            with suppress(BusyError):
                return await self.ask(verb)
            await asyncio.sleep(AGAIN_SECONDS)
        return await self.ask(verb)

    async def close(self) -> None:
        """End the programmer; what it is doing is finished first."""
        await self._run(self._drop)
        self._thread.shutdown()

    async def _run(self, call: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    # -- in the thread --------------------------------------------------------------------------

    def _call(self, verb: Callable[[Privileged], R]) -> R:
        if self._programmer is None:
            raise UnreachableError("the programmer is being started")
        try:
            return verb(self._programmer)
        except UnreachableError as error:
            self._drop()
            raise _DiedError(str(error)) from None

    def _restart(self) -> None:
        self._drop()
        self._programmer = self._start()

    def _drop(self) -> None:
        if self._programmer:
            with suppress(OSError):
                self._programmer.close()
        self._programmer = None
