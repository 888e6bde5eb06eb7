"""Structured logs on standard error: JSON for machines, readable lines on a terminal.

Text in an event's values is escaped and cut: much of it was written by pods' owners.
"""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import structlog

from nodeagent.errors import printable

_VALUE_LIMIT = 512


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
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _escape,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[logging_.level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # one write a line: two processes share the file
    )


def _escape(_logger: object, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    return {name: printable(value, _VALUE_LIMIT) if isinstance(value, str) else value for name, value in event.items()}
