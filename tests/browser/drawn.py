"""A terminal's screen as a picture: what pyte says is on it, drawn by Chromium."""

import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser

from tests.lab.terminal import Terminal

_GROUND, _INK = "#10151b", "#dfe6ee"
_COLOURS = {
    "default": _INK,
    "black": _GROUND,
    "red": "#ff6b81",
    "green": "#4ecb8f",
    "brown": "#e9b44c",  # what pyte calls yellow
    "blue": "#74b7ff",
    "magenta": "#c9a2ff",
    "cyan": "#5fd0d6",
    "white": "#ffffff",
}
_PAGE = f"""<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0 }}
pre {{ display: inline-block; margin: 0; padding: 14px 18px; border-radius: 10px; background: {_GROUND}; color: {_INK};
      font: 14px/1.35 "DejaVu Sans Mono", ui-monospace, monospace }}
</style><pre>%s</pre>"""


def draw(terminal: Terminal, browser: Browser, path: Path) -> None:
    """Write what is on the screen of *terminal* to *path*, as a PNG."""
    context = browser.new_context(viewport={"width": 1800, "height": 1000})
    try:
        page = context.new_page()
        page.set_content(_PAGE % "\n".join(_line(cells) for cells in terminal.cells()))
        page.locator("pre").screenshot(path=path, omit_background=True)
    finally:
        context.close()


def _line(cells: Iterable[Any]) -> str:
    return "".join(_cell(cell) for cell in cells)


def _cell(cell: Any) -> str:  # noqa: ANN401  # pyte has no types
    ink = _COLOURS[cell.fg]
    ground = "transparent" if cell.bg == "default" else _COLOURS[cell.bg]
    if cell.reverse:
        ink, ground = _GROUND, ink
    style = f"color:{ink};background:{ground};font-weight:{'bold' if cell.bold else 'normal'}"
    return f'<span style="{style}">{html.escape(cell.data)}</span>'
