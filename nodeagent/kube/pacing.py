"""When to try again: later each time, and never at the same moment as all other nodes."""

import random
from collections.abc import Callable
from typing import Final

FIRST: Final = 1.0
LONGEST: Final = 60.0


class Backoff:
    """Waits with full jitter: anything from nothing to a limit that doubles; *uniform* is :func:`random.uniform`."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self.failures = 0

    def reset(self) -> None:
        """Begin anew: it worked."""
        self.failures = 0

    def next(self, at_least: float | None = None) -> float:
        """Return the seconds to wait after one more failure, *at_least* as many as the server asked for.

        >>> backoff = Backoff(max)
        >>> [backoff.next() for _ in range(8)]
        [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
        """
        limit = min(LONGEST, FIRST * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return (at_least or 0.0) + self._uniform(0.0, limit)
