"""``cli.md``: every command, as ``--help`` says it."""

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import Final
from unittest.mock import patch

from docs.source.markdown import block, code, page, table
from nodeagent.cli.arguments import build_parser

_COLUMNS: Final = "100"


def commands() -> Mapping[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    [found] = [action.choices for action in build_parser()._actions if isinstance(action.choices, dict)]  # noqa: SLF001
    return dict(found)


def cli() -> str:
    """Return the page."""
    return page("Command line", _INTRODUCTION, *_parts())


def _parts() -> Iterator[str]:
    found = commands()
    with patch.dict(os.environ, {"COLUMNS": _COLUMNS}):
        yield table(
            ("command", "does"),
            [(f"[{code(name)}](#{name})", parser.description or "") for name, parser in found.items()],
        )
        yield block(build_parser().format_help())
        for name, parser in found.items():
            yield f"## {name}"
            yield block(parser.format_help())


_INTRODUCTION = """
`nodeagent COMMAND`. What asks the agent (`flows`, `top`, `status`, `explain --pod`) needs no privilege, only its inner listener; what touches a namespace needs root.
Facts go to standard output, everything else to standard error; colours are for terminals, and not where `NO_COLOR` is set.
"""
