"""Pods that want a look, each at most once, the one that has waited longest first.

Only urgent ones, for which a container runtime waits, go before it.
So a pod that fails, or whose files change all the time, delays no other by more than one step.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_AT_ONCE = float("-inf")


class Queue(Generic[K]):
    """Keys and the times when they are due, by *clock*, which counts seconds and never goes back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due: dict[K, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._numbers = itertools.count()
        self._added = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: K, delay: float = 0.0, *, urgent: bool = False) -> None:
        """Let *key* be due in *delay* seconds, or earlier if it is due earlier already; *urgent*: before all others."""
        due = _AT_ONCE if urgent else self._clock() + delay
        if key in self._due and self._due[key][0] <= due:
            return
        number = next(self._numbers)
        self._due[key] = due, number
        heapq.heappush(self._heap, (due, number, key))
        self._added.set()

    def discard(self, key: K) -> None:
        """Forget *key*."""
        self._due.pop(key, None)

    async def get(self, most: int = 1) -> list[K]:
        """Return the keys that are due, in order, *most* of them at most, once there is one."""
        while True:
            self._added.clear()
            if found := list(self._take(most)):
                return found
            try:
                async with asyncio.timeout(self._wait()):
                    await self._added.wait()
            except TimeoutError:
                continue

    def urgent(self) -> Iterator[K]:
        """Yield the keys that are urgent, as long as there are any."""
        while self._wait() == _AT_ONCE:
            yield from self._take(1)

    def _take(self, most: int) -> Iterator[K]:
        for _ in range(most):
            wait = self._wait()
            if wait is None or wait > 0:
                return
            _, _, key = heapq.heappop(self._heap)
            del self._due[key]
            yield key

    def _wait(self) -> float | None:
        """Return the seconds until the first key is due; None if there is none."""
        while self._heap:
            due, number, key = self._heap[0]
            if self._due.get(key) == (due, number):
                return due - self._clock()
            heapq.heappop(self._heap)  # forgotten, or due earlier
        return None


def backoff(failures: int, first: float = 0.1, longest: float = 30.0) -> float:
    """Return the seconds to wait after so many failures in a row.

    >>> [backoff(n) for n in (1, 2, 3, 20)]
    [0.1, 0.2, 0.4, 30.0]
    """
    return min(longest, first * 2.0 ** min(failures - 1, 30))
