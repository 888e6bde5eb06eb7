"""A whole terminal to draw on, by ncurses: keys, colours, sizes that change; and an end that leaves it as it was.

Why ncurses and no larger library: docs/adr/0017.  Signals that would end the process end the drawing first.
"""

import curses
import os
import select
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from nodeagent.cli.live import Line

KEY_SECONDS = 0.1
"""How long to wait for a key before one looks for something else to do."""

_ESCAPE_MILLISECONDS = 25
_COLOURS = {"good": curses.COLOR_GREEN, "bad": curses.COLOR_RED, "warning": curses.COLOR_YELLOW}
_END_OF_FILE = 3
_FATAL = (signal.SIGTERM, signal.SIGHUP)


class HungUpError(Exception):
    """Nobody is at the terminal any more."""


def is_live() -> bool:
    """Say whether somebody is at a terminal that can be drawn on, and has a keyboard."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        curses.setupterm()
    except curses.error:  # TERM is unknown, or not set
        return False
    return bool(curses.tigetstr("cup") and curses.tigetstr("clear"))


class Terminal:
    """The screen; made by :func:`opened`."""

    def __init__(self, window: "curses.window") -> None:
        self._window = window
        window.nodelay(True)  # noqa: FBT003  # curses' signature
        self._styles = {"": 0, "bold": curses.A_BOLD, "dim": curses.A_DIM, **_colours()}
        self._nothing = 0
        self._keyboard = select.poll()
        self._keyboard.register(sys.stdin.fileno(), select.POLLIN)

    @property
    def size(self) -> tuple[int, int]:
        """Lines and columns."""
        height, width = self._window.getmaxyx()
        return height, width

    def draw(self, lines: Iterable[Line]) -> None:
        """Show *lines*, cut where the screen ends; what stood there before is gone."""
        height, width = self.size
        self._window.erase()
        for y, line in zip(range(height), lines, strict=False):
            x = 0
            for text, style in line:
                piece = text[: width - x]
                # curses says "error" for what it did, when that was the last cell of the screen.
                with suppress(curses.error):
                    self._window.addstr(y, x, piece, self._styles[style])
                x += len(piece)
        self._window.refresh()

    def keys(self, seconds: float) -> list[str]:
        """Return the keys that were pressed, waiting up to *seconds* for one; a new size counts as a key.

        Raises:
            HungUpError: the terminal has gone.
        """
        ready = self._keyboard.poll(seconds * 1000)
        found = list(self._pressed())
        # Readable and nothing to read, again and again, is the end of the file.
        self._nothing = self._nothing + 1 if ready and not found else 0
        gone = any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in ready)
        if gone or self._nothing > _END_OF_FILE:
            raise HungUpError
        return found

    def _pressed(self) -> Iterator[str]:
        while True:
            try:
                yield self._window.getkey()
            except curses.error:
                return


@contextmanager
def opened() -> Iterator[Terminal]:
    """Take the terminal for the length of the block, and give it back as it was, whatever happens."""
    before = {number: signal.signal(number, _end) for number in _FATAL}
    try:
        window = curses.initscr()
        try:
            curses.noecho()
            curses.cbreak()
            window.keypad(True)  # noqa: FBT003  # curses' signature
            curses.set_escdelay(_ESCAPE_MILLISECONDS)
            with suppress(curses.error):  # not every terminal has a cursor that can be hidden
                curses.curs_set(0)
            yield Terminal(window)
        finally:
            with suppress(curses.error):
                curses.endwin()
    except HungUpError:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _colours() -> dict[str, int]:
    plain = {"good": 0, "bad": curses.A_BOLD, "warning": 0}
    if "NO_COLOR" in os.environ:
        return plain
    with suppress(curses.error):
        curses.start_color()
        curses.use_default_colors()
        for number, colour in enumerate(_COLOURS.values(), 1):
            curses.init_pair(number, colour, -1)
        return {name: curses.color_pair(number) for number, name in enumerate(_COLOURS, 1)}
    return plain
