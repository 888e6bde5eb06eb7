"""Starts and ends the node's components.  It starts nothing again by itself, so that one that falls over is seen."""

import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

from tests.cluster.components import Component

_POLL = 0.05


class ComponentError(Exception):
    """A component did not do what it was asked to; the message says which, and shows the end of its log."""


class Supervisor:
    """The running components; safe for several threads, as long as each is busy with a component of its own."""

    def __init__(self, components: Mapping[str, Component], logs: Path) -> None:
        self._components, self._logs = components, logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def pids(self) -> dict[str, int]:
        """Return the process ids, in the node's PID namespace, of what runs."""
        return {name: process.pid for name, process in self._processes.items() if process.poll() is None}

    def start(self, name: str) -> None:
        """Start the component *name*, which must not be running; its output goes to `logs/NAME.log`."""
        component = self._component(name)
        if name in self.pids():
            raise ComponentError(f"{name} is running already")
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/run", "TMPDIR": "/run"}
        with (self._logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                component.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, **component.environment},
                process_group=0,
            )

    def stop(self, name: str, number: int, patience: float) -> int:
        """Send the signal *number* to the component *name* and wait for its end; return its exit code."""
        self._component(name)
        if name not in self.pids():
            raise ComponentError(f"{name} is not running")
        process = self._processes[name]
        process.send_signal(number)
        try:
            return process.wait(patience)
        except subprocess.TimeoutExpired:
            raise ComponentError(f"{name} did not end within {patience:.0f} s of signal {number}") from None

    def wait_until_healthy(self, name: str, patience: float) -> None:
        """Return when the component *name* serves; ComponentError if it ends before, or takes too long."""
        health, deadline = self._component(name).health, time.monotonic() + patience
        while not _answers(health):
            code = self._processes[name].poll()
            if code is not None:
                raise ComponentError(f"{name} ended with {code}\n{self._tail(name)}")
            if time.monotonic() > deadline:
                raise ComponentError(f"{name} does not serve after {patience:.0f} s\n{self._tail(name)}")
            time.sleep(_POLL)

    def _component(self, name: str) -> Component:
        if name not in self._components:
            raise ComponentError(f"no component {name}: there are {', '.join(self._components)}")
        return self._components[name]

    def _tail(self, name: str) -> str:
        lines = (self._logs / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-15:])


def _answers(health: str) -> bool:
    if health.startswith("/"):
        return _accepts(health)
    # Who it is does not matter here; that is what its clients check.
    anybody = ssl._create_unverified_context()  # noqa: S323
    try:
        with urllib.request.urlopen(health, timeout=2, context=anybody) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
        except OSError:
            return False
    return True
