"""The commands and files that the pages of ``docs`` show.

A ``console`` block holds commands, each after ``$``, and what they print; ``...`` stands for anything, at the end of a
line or as a line of its own.  A ``yaml`` block whose first line names a file is that file.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "daemonset" / "README.md"]
    if path.name != "0000-template.md"
)
_BLOCK_RE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_REFUSED_RE = re.compile(r" +# refused: (\d)$")


@dataclass(frozen=True)
class Command:
    """One command of a page: its words, what it prints, and its exit code if that is not 0."""

    page: str
    line: str
    output: str
    code: int = 0

    def __str__(self) -> str:
        return f"{self.page}: {self.line}"

    def is_printed(self, text: str) -> bool:
        """Say whether *text* is what the page shows, but for trailing blanks."""
        pattern = "".join(_pattern(line) for line in self.output.splitlines())
        plain = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
        return re.fullmatch(pattern, plain) is not None


def _pattern(line: str) -> str:
    if line == "...":
        return r"(?:.*\n)*?"
    pieces = re.split(r"\.\.\.", line.rstrip())
    return r"\S*.*?".join(re.sub(r"(?:\\ )+", " +", re.escape(piece)) for piece in pieces) + r" *\n"


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of a page in that language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [block for found, block in _BLOCK_RE.findall(text) if found == language]


def commands(page: Path) -> Iterator[Command]:
    """Yield the commands of a page, in order."""
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            refused = _REFUSED_RE.search(line)
            yield Command(str(page), _REFUSED_RE.sub("", line), output, int(refused[1]) if refused else 0)


def files(page: Path) -> dict[str, str]:
    """Return the files of a page; the last of a name."""
    named = (re.match(r"# (\S+\.yaml)\n", block) for block in blocks(page, "yaml"))
    return {found[1]: found.string for found in named if found}
