r"""A real pseudo-terminal with a program on it, and an emulator that says what a person would see.

with Terminal([*NODEAGENT, "top"]) as terminal:
    terminal.wait("flows")
    terminal.type("/web\r")
"""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import pyte

from tests.lab.process import LabError

_PATIENCE = 60.0


class _Screen(pyte.Screen):
    """pyte's, which lacks what ncurses does where several lines go at once: scrolling by number."""

    def scroll_up(self, count: int | None = None) -> None:
        """Let the lines within the margins go up; SU of ECMA-48."""
        _, bottom = self.margins or (0, self.lines - 1)
        self._at(bottom, self.index, count)

    def scroll_down(self, count: int | None = None) -> None:
        """Let them go down; SD."""
        top, _ = self.margins or (0, self.lines - 1)
        self._at(top, self.reverse_index, count)

    def _at(self, line: int, move: Callable[[], None], count: int | None) -> None:
        before, self.cursor.y = self.cursor.y, line
        for _ in range(count or 1):
            move()
        self.cursor.y = before


class _Stream(pyte.ByteStream):
    """Knows the sequences of :class:`_Screen` as well."""

    csi = {**pyte.ByteStream.csi, "S": "scroll_up", "T": "scroll_down"}  # noqa: RUF012  # as in the class it extends
    events = pyte.ByteStream.events | {"scroll_up", "scroll_down"}


class Terminal:
    """*command* on a terminal of its own, which is its controlling terminal: Ctrl-C, resizing and hanging up work."""

    def __init__(
        self, command: Sequence[str], lines: int = 24, columns: int = 120, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start *command*, with *environment* in addition to ours."""
        self._screen = _Screen(columns, lines)
        self._stream = _Stream(self._screen)
        self._ours, theirs = pty.openpty()
        self.raw = b""
        """All that it wrote, escape sequences included."""
        _set_size(theirs, lines, columns)
        self.before = termios.tcgetattr(self._ours)
        """The terminal's attributes before the program began."""
        names = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "LINES", "COLUMNS")}
        try:
            # setsid --ctty: a session of its own, whose terminal is its standard input.
            self._process = subprocess.Popen(
                ["setsid", "--ctty", *command],
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                env={**names, "TERM": "xterm-256color", **(environment or {})},
            )
        finally:
            os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self.hang_up()

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._process.pid

    @property
    def attributes(self) -> list[Any]:
        """The terminal's attributes now."""
        return termios.tcgetattr(self._ours)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._ours, text.encode())

    def resize(self, lines: int, columns: int) -> None:
        """Give the terminal another size, and tell the program, as a window does."""
        self._screen.resize(lines, columns)
        _set_size(self._ours, lines, columns)

    def hang_up(self) -> None:
        """Close the terminal."""
        if self._ours >= 0:
            os.close(self._ours)
        self._ours = -1

    def signal(self, number: signal.Signals) -> None:
        """Send the program a signal."""
        self._process.send_signal(number)

    def text(self) -> str:
        """Return what stands on the screen."""
        return "\n".join(line.rstrip() for line in self._screen.display)

    def cells(self) -> list[list[Any]]:
        """Return the screen's lines as pyte has them: a character with its colours in each cell."""
        return [[self._screen.buffer[y][x] for x in range(self._screen.columns)] for y in range(self._screen.lines)]

    def wait(self, condition: Callable[[str], object] | str) -> str:
        """Wait until *condition* holds of the screen, or until the text is on it; return the screen."""
        holds = condition if callable(condition) else (lambda text: condition in text)
        deadline = time.monotonic() + _PATIENCE
        while not holds(self.text()):
            if time.monotonic() > deadline:
                raise LabError(f"it never showed {condition}:\n{self.text()}")
            self._read(0.05)
        return self.text()

    def ends(self) -> int:
        """Wait for the program's end; return its exit code."""
        deadline = time.monotonic() + _PATIENCE
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                raise LabError(f"it does not end:\n{self.text()}")
            self._read(0.05)
        self._read(0)
        return self._process.returncode

    def _read(self, seconds: float) -> None:
        if self._ours < 0:
            time.sleep(seconds)
            return
        if select.select([self._ours], [], [], seconds)[0]:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # EIO: nobody has the other end open
                return
            self.raw += data
            self._stream.feed(data)


def _set_size(descriptor: int, lines: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
