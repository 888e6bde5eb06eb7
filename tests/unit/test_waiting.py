"""Who is told to stop stops, also if something happens at that very moment."""

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from nodeagent.agent.queue import Queue
from nodeagent.agent.waiting import readable


async def waits_for_a_descriptor(happens: Callable[[Callable[[], object]], None]) -> Awaitable[object]:
    """Wait for a pipe that somebody writes to."""
    reader, writer = os.pipe()
    happens(lambda: os.write(writer, b"x"))
    return asyncio.ensure_future(readable(reader, 3600))


async def waits_for_a_pod(happens: Callable[[Callable[[], object]], None]) -> Awaitable[object]:
    """Wait for a queue that somebody adds to."""
    queue = Queue[str](asyncio.get_running_loop().time)
    queue.add("later", 3600)
    happens(lambda: queue.add("now"))
    return asyncio.ensure_future(queue.get())


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("start", [waits_for_a_descriptor, waits_for_a_pod], ids=["a descriptor", "a pod"])
def test_a_cancellation_at_the_moment_when_it_happens_is_not_lost(
    start: Callable[[Callable[[Callable[[], object]], None]], Awaitable[asyncio.Task[object]]], turns: int
) -> None:
    """*turns* of the loop lie between what happens and the cancellation."""

    async def stop() -> bool:
        happening: list[Callable[[], object]] = []
        task = await start(happening.append)
        for _ in range(5):
            await asyncio.sleep(0)
        happening[0]()
        for _ in range(turns):
            await asyncio.sleep(0)
        was_done = task.done()
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled() or was_done

    assert asyncio.run(stop())
