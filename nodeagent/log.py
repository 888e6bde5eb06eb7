"""Structured logs on standard error: JSON for machines, readable lines on a terminal.

Text in an event's values is escaped and cut: much of it was written by pods' owners, who can also have something
happen as often as they like.  So of warnings and errors each kind, which is the event's own text, has a limit a minute.
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from nodeagent.errors import printable

_VALUE_LIMIT = 512

MOST_A_MINUTE: Final = 300
"""Warnings, or errors, of one kind.  As many pods can be refused at a start."""

_LIMITED: Final = frozenset({"warning", "error", "exception", "critical"})
_MINUTE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Logging:
    """What to log, and how: ``auto`` is text on a terminal, else JSON."""

    level: str = "warning"
    style: str = "auto"


def configure_logging(logging_: Logging) -> None:
    """Send events of that level and above to standard error."""
    terminal = logging_.style == "text" or (logging_.style == "auto" and sys.stderr.isatty())
    renderer = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            Limit(),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _escape,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[logging_.level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # one write a line: two processes share the file
    )


class Limit:
    """Lets so many events of a kind by; the last of them says that more are left out, the next one how many were."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}  # bounded: kinds are written in the code

    def __call__(self, _logger: object, method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        """Return the event, to go on.

        Raises:
            structlog.DropEvent: there were too many of its kind.
        """
        if method not in _LIMITED:
            return event
        now, kind = self._clock(), str(event["event"])
        since, count = self._seen.get(kind, (now, 0))
        left_out = 0
        if now - since >= _MINUTE:
            since, count, left_out = now, 0, max(0, count - MOST_A_MINUTE)
        self._seen[kind] = since, count + 1
        if count >= MOST_A_MINUTE:
            raise structlog.DropEvent
        if left_out:
            return {**event, "left_out": left_out}
        return {**event, "more": "left out for up to a minute"} if count == MOST_A_MINUTE - 1 else event


def _escape(_logger: object, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    return {name: printable(value, _VALUE_LIMIT) if isinstance(value, str) else value for name, value in event.items()}
