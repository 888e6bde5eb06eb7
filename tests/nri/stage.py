"""Scenes of a plugin and a runtime, in one event loop."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

from nodeagent.nri import Handler, Plugin, Settings
from nodeagent.nri.plugin import Dial, connect

P = ParamSpec("P")

QUICK = Settings(first_delay=0.001, longest_delay=0.01)
LONGEST = 60


def scene(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test that is a coroutine; one that hangs fails."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), LONGEST))

    return run


@asynccontextmanager
async def plugged(
    path: Path, handler: Handler, settings: Settings = QUICK, dial: Dial = connect
) -> AsyncIterator[None]:
    """Run a plugin for *handler*; if it ends by itself, the scene ends with it."""
    task = asyncio.create_task(Plugin(str(path), handler, settings, dial).run())
    actor = asyncio.current_task()
    assert actor

    def end(_task: asyncio.Task[NoReturn]) -> None:
        actor.cancel()

    task.add_done_callback(end)
    try:
        yield
    finally:
        task.remove_done_callback(end)
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            raise AssertionError("the plugin ended by itself") from task.exception()
