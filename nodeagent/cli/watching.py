"""Looks again and again, over an agent that restarts meanwhile.

The first look has to succeed: who names a wrong place is told at once.  After that an agent that does not
answer is waited for: a message says so, and the last that it said stays.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

from nodeagent.errors import InputError, NodeagentError, UnreachableError

SHORTEST_INTERVAL = 0.2
"""Seconds; more often than that costs the agent more than it tells anybody."""

LONGEST_INTERVAL = 86400.0

T = TypeVar("T")


class Seen(NamedTuple, Generic[T]):
    """What one look found: ``found``, or ``problem`` if nobody answered; ``at`` is monotonic seconds."""

    at: float
    found: T | None
    problem: str | None


def check_interval(seconds: float) -> None:
    """Refuse an interval that is too short or too long.

    Raises:
        InputError: it is.
    """
    if not SHORTEST_INTERVAL <= seconds <= LONGEST_INTERVAL:
        raise InputError(f"--interval {seconds:g}: give seconds, {SHORTEST_INTERVAL} to {LONGEST_INTERVAL:g}")


def looks(look: Callable[[], T], interval: float, wait: Callable[[float], object] = time.sleep) -> Iterator[Seen[T]]:
    """Yield what *look* finds, for ever, *interval* seconds apart.

    Raises:
        NodeagentError: the first look failed, or a later one in another way than that nobody answers.
    """
    yield Seen(time.monotonic(), look(), None)
    while True:
        wait(interval)
        yield attempt(look)


def attempt(look: Callable[[], T]) -> Seen[T]:
    """Look once; an agent that does not answer is a problem to tell of, not an error."""
    try:
        return Seen(time.monotonic(), look(), None)
    except UnreachableError as error:
        return Seen(time.monotonic(), None, str(error))


class Watch(Generic[T]):
    """Looks beside its user, who takes the newest whenever there is time: a slow agent makes no slow keyboard."""

    def __init__(self, look: Callable[[], T], interval: float) -> None:
        self._look, self._interval = look, interval
        self._newest: Seen[T] | None = None
        self._error: NodeagentError | None = None
        self._ends = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look until the block ends; a look that is under way then ends with the process."""
        threading.Thread(target=self._run, daemon=True).start()
        try:
            yield
        finally:
            self._ends.set()

    def _run(self) -> None:
        try:
            while not self._ends.wait(self._interval):
                self._newest = attempt(self._look)
        except NodeagentError as error:
            self._error = error

    def newest(self) -> Seen[T] | None:
        """Return the newest look, once; None if there is none since.

        Raises:
            NodeagentError: looking has come to an end.
        """
        if self._error:
            raise self._error
        newest, self._newest = self._newest, None
        return newest
