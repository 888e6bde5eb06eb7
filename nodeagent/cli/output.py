"""What people and programs read: tables for terminals, JSON for the rest.

Colours appear on a terminal only, and not where ``NO_COLOR`` is set (no-color.org).  A reader that
goes away (``| head``) changes neither what a command does nor its exit code; a disk that is full is
an error.
"""

import json
import os
import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from nodeagent.errors import NodeagentError

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_STEP = 1024
_FEW = 10
_WIDEST = 320
"""Of a column: namespace and name of a pod fit.  What is longer makes no other row as long."""

_CODES = {"good": "32", "bad": "31", "warning": "33", "dim": "2", "bold": "1"}


def open_closed_streams() -> None:
    """Open what the caller closed (``>&-``) on ``/dev/null``: no file or socket, ours or a child's, gets its number."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            _discard(number)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


@contextmanager
def written_out() -> Iterator[None]:
    """Write out at the end of the block what was said in it, while an error still has an exit code."""
    try:
        yield
    finally:
        with _output(sys.stdout):
            sys.stdout.flush()


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line to *stream* (stdout).

    Raises:
        NodeagentError: it cannot be written.
    """
    out = sys.stdout if stream is None else stream
    with _output(out):
        out.write(f"{text}\n")


def emit(lines: Iterable[str]) -> bool:
    """Write *lines* out at once, for somebody who waits for them; False if nobody does any more.

    Raises:
        NodeagentError: they cannot be written.
    """
    try:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
    except OSError as error:
        _give_up(sys.stdout, error)
        return False
    return True


def has_reader() -> bool:
    """Say whether somebody still reads what is written to standard output."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


@contextmanager
def _output(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _give_up(stream, error)


def _give_up(stream: TextIO, error: OSError) -> None:
    """Write no more to *stream*; whoever stopped reading knows enough, and of a broken stderr nobody can be told."""
    _discard(stream.fileno())
    if not isinstance(error, BrokenPipeError) and stream is not sys.stderr:
        message = f"done, but the output cannot be written: {error.strerror}"
        raise NodeagentError(message) from None


def _discard(number: int) -> None:
    """Let everything that is written to the file descriptor *number* go nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
    os.set_inheritable(number, True)  # noqa: FBT003  # the standard library's signature


def paint(text: str, style: str, stream: TextIO | None = None) -> str:
    """Return *text* in a style of :data:`_CODES`, or in none, if *stream* (stdout) is a terminal."""
    out = sys.stdout if stream is None else stream
    if not style or not out.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m"


def size(count: float) -> str:
    """Return bytes as people read them.

    >>> size(999), size(2048), size(5 << 20)
    ('999 B', '2.0 KiB', '5.0 MiB')
    """
    for unit in _UNITS[:-1]:
        if abs(count) < _STEP:
            return f"{count:.0f} {unit}" if unit == "B" or count >= _FEW * _FEW else f"{count:.1f} {unit}"
        count /= _STEP
    return f"{count:.1f} {_UNITS[-1]}"


def print_json(value: object) -> None:
    """Print *value* as indented JSON, ASCII only."""
    say(json.dumps(value, indent=2))


def print_table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> None:
    """Print rows in aligned columns; the last column may be as long as it likes."""
    cells = [[str(cell) for cell in row] for row in rows]
    lines = [[name.upper() for name in header], *cells] if header else cells
    if not lines:
        return
    widths = [max(min(len(line[n]), _WIDEST) for line in lines) for n in range(len(lines[0]))]
    for number, line in enumerate(lines):
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        text = "  ".join(padded).rstrip()
        say(paint(text, "bold") if header and number == 0 else text)


def print_error(message: str) -> None:
    """Print one clear line about what went wrong to standard error."""
    say(f"{paint('error:', 'bad', sys.stderr)} {message}", sys.stderr)


def print_warning(message: str) -> None:
    """Print one line that deserves attention to standard error."""
    say(f"{paint('warning:', 'warning', sys.stderr)} {message}", sys.stderr)
