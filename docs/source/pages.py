"""The pages that are generated."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from docs.source.annotations import annotations
from docs.source.cli import cli
from docs.source.configuration import configuration
from docs.source.http import http
from docs.source.metrics import metrics

HOME: Final = Path(__file__).parents[1] / "reference"


def generated() -> Mapping[str, str]:
    """Return text by file name."""
    return {
        "annotations.md": annotations(),
        "cli.md": cli(),
        "configuration.md": configuration(),
        "http.md": http(),
        "metrics.md": metrics(),
    }
