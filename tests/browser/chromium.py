"""Chromium without a window, inside a network namespace: it reaches what listens there, and nothing else."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Playwright

from tests.lab import Netns

_ARGUMENTS = (
    "--no-sandbox",  # root may not use it
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP evil.example 127.0.0.1",
)


@contextmanager
def chromium(playwright: Playwright, place: Netns) -> Iterator[Browser]:
    """Run a browser with an empty profile in *place* for the length of the block."""
    with tempfile.TemporaryDirectory() as folder:
        command = Path(folder) / "chromium"
        command.write_text(f'#!/bin/sh\nexec {" ".join(place.enter)} -- /usr/bin/chromium "$@"\n')
        command.chmod(0o700)
        browser = playwright.chromium.launch(executable_path=command, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
