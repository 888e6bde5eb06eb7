"""How much leaked: since the start, and lately."""

from collections import deque
from typing import Final, NamedTuple

from nodeagent.model import Counters

RECENT: Final = 600.0
"""Seconds that count as lately."""

_STEP: Final = 10.0


class Leaked(NamedTuple):
    """What the sidecar should have seen and did not; ``recent_…`` within the last 10 minutes."""

    connections: int = 0
    bytes: int = 0
    recent_connections: int = 0
    recent_bytes: int = 0


class LeakTally:
    """Adds up leaks; bounded, because it remembers steps of ten seconds."""

    def __init__(self) -> None:
        self._connections = self._bytes = 0
        self._steps: deque[tuple[float, int, int]] = deque()

    def add(self, more: Counters, now: float) -> None:
        """Take note of what leaked since the last time."""
        self._connections += more.connections
        self._bytes += more.bytes
        begin = now - now % _STEP
        if self._steps and self._steps[-1][0] == begin:
            _, connections, size = self._steps.pop()
            self._steps.append((begin, connections + more.connections, size + more.bytes))
        else:
            self._steps.append((begin, more.connections, more.bytes))
        self._expire(now)

    def leaked(self, now: float) -> Leaked:
        """Return the totals."""
        self._expire(now)
        recent = (sum(step[1] for step in self._steps), sum(step[2] for step in self._steps))
        return Leaked(self._connections, self._bytes, *recent)

    def _expire(self, now: float) -> None:
        while self._steps and self._steps[0][0] <= now - RECENT - _STEP:
            self._steps.popleft()
