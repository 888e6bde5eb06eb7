"""Work within a budget of time: what is not done by then goes on, and nobody waits for it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import structlog

from nodeagent.errors import UnreachableError
from nodeagent.nri.handler import Outcome

Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

MOST_LATE = 256
"""Late calls that are let go on at a time."""


class Late:
    """All the work of a plugin that is still going on, also from connections that are gone."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def within(self, budget: float, work: Work) -> tuple[Outcome, tuple[BaseException, ...]]:
        """Begin *work*; return what has become of it, after *budget* seconds at most."""
        if len(self._tasks) >= MOST_LATE:
            error = UnreachableError(f"{MOST_LATE} calls are still at work: this one was not begun")
            return Outcome.FAILED, (error,)
        task = asyncio.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task}, timeout=budget)
        if not task.done():
            task.add_done_callback(_log_failure)
            return Outcome.LATE, ()
        failure = _failure(task)
        return (Outcome.FAILED, (failure,)) if failure else (Outcome.DONE, ())

    async def end(self) -> None:
        """Cancel what is still at work, and wait until it has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _failure(task: asyncio.Task[None]) -> BaseException | None:
    return asyncio.CancelledError("cancelled from outside") if task.cancelled() else task.exception()


def _log_failure(task: asyncio.Task[None]) -> None:
    """Log what nobody waits for any more; an end that was asked for is not worth a line."""
    if not task.cancelled() and (error := task.exception()):
        structlog.get_logger().error("a late call failed", error=type(error).__name__, message=str(error))
