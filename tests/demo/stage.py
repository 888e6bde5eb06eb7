"""What both acts use: the command line, tables, and lines of the story."""

import subprocess
import sys
from contextlib import ExitStack

from nodeagent.cli.output import paint, print_table
from tests.lab.interrupts import interrupts_held

Row = tuple[str, str, str, str, str]
"""Destination, what, expected, happened, why."""


def nodeagent(*arguments: str, shown: str = "", may_end_with: int = 0) -> None:
    """Run the real command line, and show what it says; the demo ends where it fails."""
    print(paint(f"$ nodeagent {shown or ' '.join(arguments)}", "bold"), flush=True)
    with ExitStack() as started:
        with interrupts_held():
            process = subprocess.Popen([sys.executable, "-m", "nodeagent", *arguments])
            started.callback(_end, process)
        code = process.wait()
    if code not in (0, may_end_with):
        sys.exit(f"nodeagent {arguments[0]} ended with {code}: the demo stops here")
    print()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def show(rows: list[Row]) -> None:
    """Print the table; a row that is not as expected stands out."""
    marked = [(*r[:3], r[3] if r[2] == r[3] else f"!! {r[3]}", r[4]) for r in rows]
    print_table(marked, ("destination", "connection", "expected", "happened", "why"))
    print()


def say(text: str) -> None:
    """Print a line of the story."""
    print(paint(text, "bold"), flush=True)
