"""Files that people name on a command line, into text: bounded, UTF-8, errors in one line."""

import sys
from pathlib import Path

from nodeagent.errors import InputError, printable
from nodeagent.policy.document import decode

STANDARD_INPUT = "-"


def read_text(path: str, largest: int) -> tuple[str, str]:
    """Return what to call the file at *path* in errors, and its text.

    ``-`` is standard input.  No more than *largest* bytes and one are ever read.

    Raises:
        InputError: it cannot be read, is larger, or is not UTF-8.
    """
    name = "standard input" if path == STANDARD_INPUT else printable(path)
    try:
        raw = _read(path, largest + 1)
    except IsADirectoryError as error:
        raise InputError(f"{name}: is a directory: give one file, or - for standard input") from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a null byte in the path
        raise InputError(f"{name}: is not the name of a file") from error
    return name, decode(raw, name, largest)


def _read(path: str, size: int) -> bytes:
    if path == STANDARD_INPUT:
        return sys.stdin.buffer.read(size)
    with Path(path).open("rb") as file:
        return file.read(size)
