"""The archive of `nodeagent support`: bounded, redacted, and honest about what is missing."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from nodeagent.cli import archive as module
from nodeagent.cli import main
from nodeagent.cli.archive import Entry, Item, Keep, write_archive
from nodeagent.errors import UnreachableError

LARGEST_FILE, LARGEST_ARCHIVE = 4096, 20_000


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few kilobytes be much."""
    monkeypatch.setattr(module, "LARGEST_FILE", LARGEST_FILE)
    monkeypatch.setattr(module, "LARGEST_ARCHIVE", LARGEST_ARCHIVE)


def archive(*items: Item) -> tuple[list[Entry], dict[str, bytes]]:
    """Return what became of *items*, and what is in the archive."""
    file = io.BytesIO()
    entries = write_archive(file, "x", items)
    file.seek(0)
    return entries, contents(file)


def contents(file: io.BytesIO) -> dict[str, bytes]:
    with tarfile.open(fileobj=file) as found:
        read = {member.name: found.extractfile(member) for member in found.getmembers()}
        return {name.partition("/")[2]: data.read() for name, data in read.items() if data}


def fail() -> bytes:
    raise UnreachableError("no agent answers at https://joe:hunter2@127.0.0.1")


def test_what_cannot_be_had_is_named_and_the_rest_is_there() -> None:
    entries, found = archive(Item("a", fail), Item("b", lambda: b"here\n"))
    assert found["b"] == b"here\n"
    assert found.keys() == {"b", "index.json"}
    assert [(entry.name, entry.error is None) for entry in entries] == [("a", False), ("b", True)]
    assert "hunter2" not in (entries[0].error or "")
    assert [entry["name"] for entry in json.loads(found["index.json"])] == ["a", "b"]


def test_a_file_that_is_not_there_keeps_nothing_back(tmp_path: Path) -> None:
    entries, _ = archive(Item("a", (tmp_path / "none").read_bytes), Item("b", lambda: b""))
    assert "No such file" in (entries[0].error or "")


@pytest.mark.parametrize(("keep", "first"), [(Keep.HEAD, 0), (Keep.TAIL, None)], ids=["of the head", "of the tail"])
def test_a_large_file_is_cut_to_whole_lines(keep: Keep, first: int | None) -> None:
    lines = [f"line {number}\n".encode() for number in range(LARGEST_FILE // 8)]
    ((entry), found) = archive(Item("log", lambda: b"".join(lines), keep))
    assert entry[0].is_cut
    assert LARGEST_FILE - 20 < len(found["log"]) <= LARGEST_FILE
    kept = found["log"].splitlines(keepends=True)
    assert kept[0 if first == 0 else -1] == lines[0 if first == 0 else -1]
    assert kept == (lines[: len(kept)] if keep is Keep.HEAD else lines[-len(kept) :])


def test_all_together_are_bounded() -> None:
    big = b"0123456789\n" * (LARGEST_FILE // 10)
    entries, found = archive(*(Item(f"log{number}", lambda: big) for number in range(12)))
    assert sum(map(len, found.values())) - len(found["index.json"]) <= LARGEST_ARCHIVE
    assert entries[-1].error == "no room is left"


def test_a_secret_does_not_survive_a_cut() -> None:
    padding = b"x" * 70 + b"\n"
    text = b"password: hunter2\n" + padding * 100 + b"password: hunter2\n"
    for keep in Keep:
        _, found = archive(Item("log", lambda: text, keep))
        assert b"hunter2" not in found["log"]


def test_a_file_that_is_there_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "support.tar.gz"
    target.write_text("mine")
    assert main(["support", "-f", str(target)]) == 2
    assert "File exists" in capsys.readouterr().err
    assert target.read_text() == "mine"
