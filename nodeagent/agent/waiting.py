"""Waiting for descriptors, without a callback that outlives the wait."""

import asyncio


async def readable(descriptor: int, seconds: float | None = None) -> bool:
    """Wait until *descriptor* can be read, at most *seconds*; say whether it can."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), seconds)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
    return True
