"""Waiting for descriptors, without a callback that outlives the wait.

Nothing of the agent's waits by ``asyncio.wait_for``: before Python 3.12 it swallows a cancellation that comes at the
moment when what it waits for happens, and an agent that was told to stop while a file changed would go on for ever.
"""

import asyncio


async def readable(descriptor: int, seconds: float | None = None) -> bool:
    """Wait until *descriptor* can be read, at most *seconds*; say whether it can."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        async with asyncio.timeout(seconds):
            await ready.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
    return True
