"""Structured logs on standard error: JSON for machines, readable lines on a terminal.

Text in an event's values is escaped and cut: much of it was written by pods' owners.
"""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

from nodeagent.errors import printable

_VALUE_LIMIT = 512


def configure_logging(level: str, style: str) -> None:
    """Send events of *level* and above to standard error, as *style* (auto, text, json)."""
    terminal = style == "text" or (style == "auto" and sys.stderr.isatty())
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
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _escape(_logger: object, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    return {name: printable(value, _VALUE_LIMIT) if isinstance(value, str) else value for name, value in event.items()}
