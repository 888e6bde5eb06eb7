"""An archive of what a maintainer asks for: without secrets, bounded, and complete in saying what is missing.

Each file is redacted (:mod:`nodeagent.cli.redact`), then cut.  What could not be had is
named in ``index.json`` with its reason; nothing that fails keeps the rest from being collected.
"""

import io
import json
import tarfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO, Final

from nodeagent.cli.redact import redact, redact_text
from nodeagent.errors import NodeagentError, printable

LARGEST_FILE: Final = 4 << 20
LARGEST_ARCHIVE: Final = 32 << 20
"""Bytes before compression."""
_LARGEST_READ: Final = 4 * LARGEST_FILE
_SHOWN: Final = 300


class Keep(Enum):
    """Which part of too large a file counts."""

    HEAD = "head"
    TAIL = "tail"


@dataclass(frozen=True, slots=True)
class Item:
    """One file: its name in the archive, and what gives its content."""

    name: str
    collect: Callable[[], bytes]
    keep: Keep = Keep.HEAD


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of an item: its size in bytes, whether it was cut, the seconds it took, or why it is not there."""

    name: str
    size: int
    is_cut: bool
    seconds: float
    error: str | None = None


def write_archive(file: BinaryIO, folder: str, items: Iterable[Item]) -> list[Entry]:
    """Write *items* below *folder* of a compressed tar archive; return what became of each."""
    entries: list[Entry] = []
    left = LARGEST_ARCHIVE
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for item in items:
            data, entry = _collect(item, left)
            entries.append(entry)
            if data is not None:
                left -= len(data)
                _add(archive, f"{folder}/{item.name}", data)
        index = json.dumps([asdict(entry) for entry in entries], indent=1).encode()
        _add(archive, f"{folder}/index.json", index)
    return entries


def _collect(item: Item, left: int) -> tuple[bytes | None, Entry]:
    """Return the item's content, which takes no more than *left* bytes, if it can be had."""
    began = time.monotonic()
    try:
        data = item.collect()
        error = "no room is left" if left <= 0 else None
    except (NodeagentError, OSError, ValueError) as problem:
        data, error = b"", redact_text(printable(str(problem) or repr(problem), _SHOWN))
    seconds = round(time.monotonic() - began, 2)
    if error:
        return None, Entry(item.name, 0, is_cut=False, seconds=seconds, error=error)
    read, is_cut = _cut(data, _LARGEST_READ, item.keep)
    shown, is_cut_again = _cut(redact(read), min(LARGEST_FILE, left), item.keep)
    return shown, Entry(item.name, len(shown), is_cut or is_cut_again, seconds)


def _cut(data: bytes, most: int, keep: Keep) -> tuple[bytes, bool]:
    """Return no more than *most* bytes of *data*, in whole lines where it has any, and whether that is less."""
    if len(data) <= most:
        return data, False
    if keep is Keep.HEAD:
        end = data.rfind(b"\n", 0, most) + 1
        return data[: end or most], True
    begin = data.find(b"\n", len(data) - most) + 1
    return data[begin or len(data) - most :], True


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
    archive.addfile(member, io.BytesIO(data))


def as_json(value: object) -> bytes:
    """Return *value* as a file's content."""
    return (json.dumps(value, indent=1) + "\n").encode()


def read_file(path: Path, most: int = LARGEST_FILE) -> bytes:
    """Return the beginning of a file of the system."""
    with path.open("rb") as file:
        return file.read(most)
