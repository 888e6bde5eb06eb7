"""What people and programs read: tables for terminals, JSON for the rest.

Colours appear on a terminal only, and not where ``NO_COLOR`` is set (no-color.org).
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

_CODES = {"good": "32", "bad": "31", "warning": "33", "dim": "2", "bold": "1"}


def paint(text: str, style: str, stream: TextIO | None = None) -> str:
    """Return *text* in a style of :data:`_CODES` if *stream* (stdout) is a terminal."""
    out = sys.stdout if stream is None else stream
    if out is None or not out.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m"


def print_json(value: object) -> None:
    """Print *value* as indented JSON, ASCII only."""
    print(json.dumps(value, indent=2))


def print_table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> None:
    """Print rows in aligned columns; the last column may be as long as it likes."""
    cells = [[str(cell) for cell in row] for row in rows]
    lines = [[name.upper() for name in header], *cells] if header else cells
    if not lines:
        return
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    for number, line in enumerate(lines):
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        text = "  ".join(padded).rstrip()
        print(paint(text, "bold") if header and number == 0 else text)


def print_error(message: str) -> None:
    """Print one clear line about what went wrong to standard error."""
    print(paint("error:", "bad", sys.stderr), message, file=sys.stderr)


def print_warning(message: str) -> None:
    """Print one line that deserves attention to standard error."""
    print(paint("warning:", "warning", sys.stderr), message, file=sys.stderr)
