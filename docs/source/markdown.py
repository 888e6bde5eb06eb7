"""Pieces of Markdown."""

from collections.abc import Iterable, Sequence

GENERATED = "<!-- Made from the code by `make reference`: edit that, not this. -->\n"


def page(title: str, *parts: str) -> str:
    """Return a page of *parts*, one blank line between them."""
    return "\n\n".join((GENERATED.strip(), f"# {title}", *(part.strip("\n") for part in parts))) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells may hold Markdown, and a bar in them stays one."""
    lines = [header, *rows]
    made = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join((made[0], "|" + "---|" * len(header), *made[1:]))


def code(text: object) -> str:
    """Return *text* as code within a line."""
    return f"`{text}`"


def block(text: str, language: str = "text") -> str:
    """Return *text* as a block of code."""
    return f"```{language}\n{text.rstrip()}\n```"
