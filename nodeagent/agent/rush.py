"""Calls of the container runtime that are under way: what can wait, waits.

The runtime makes one call at a time for the whole node, so each millisecond of an answer is one of every
pod that is being started.  What is for nobody in particular passes between two calls, or is let through
after a while: it is never kept waiting for good.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_QUIET_SECONDS: Final = 0.02
"""After a call: as a rule the next one follows at once, where several pods start."""
_LONGEST_SECONDS: Final = 2.0
_STEP_SECONDS: Final = 0.01


class Rush:
    """Whether the runtime waits; *clock* counts seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls = 0
        self._last = float("-inf")

    @property
    def is_on(self) -> bool:
        """Whether a call is under way, or was a moment ago."""
        return self._calls > 0 or self._clock() - self._last < _QUIET_SECONDS

    @contextmanager
    def call(self) -> Iterator[None]:
        """Let others wait for the length of the block."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._last = self._clock()

    async def let_by(self) -> None:
        """Wait until nobody is in a hurry, or for two seconds."""
        deadline = self._clock() + _LONGEST_SECONDS
        while self.is_on and self._clock() < deadline:  # noqa: ASYNC110  # its end is no event, it is silence
            await asyncio.sleep(_STEP_SECONDS)
