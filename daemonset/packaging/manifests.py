"""Plain manifests, for `kubectl apply`: what Helm renders from the chart."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from daemonset.packaging.schema import CHART

HOME: Final = CHART.parent / "manifests"

_HEADER: Final = "# Rendered from daemonset/chart by `make manifests`.\n"
_SWITCHES: Final = {
    "nodeagent.yaml": ("--set=namespace.create=true",),
    "uninstall.yaml": ("--set=uninstall.enabled=true", "--show-only=templates/daemonset.yaml"),
}


def write_manifests(helm: Path) -> None:
    """Write all manifests."""
    HOME.mkdir(exist_ok=True)
    for name, text in manifests(helm).items():
        (HOME / name).write_text(text, encoding="utf-8")


def manifests(helm: Path) -> Mapping[str, str]:
    """Return text by name below ``daemonset/manifests/``."""
    return {name: _HEADER + render(helm, *switches) for name, switches in _SWITCHES.items()}


def render(helm: Path, *switches: str) -> str:
    """Return what the chart gives for these switches of ``helm template``.

    Raises:
        ChartError: Helm refuses; its words.
    """
    command = [str(helm), "template", "nodeagent", str(CHART), "--namespace=nodeagent", *switches]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChartError(done.stderr.strip())
    return done.stdout


class ChartError(Exception):
    """Helm does not render the chart: mend the values, or the chart."""
