"""A Ctrl-C that comes while a process is being started is neither lost nor too early."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.lab.interrupts import interrupts_held


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Hear interrupts, also where what runs the tests has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _start_while_interrupted(started: list[subprocess.Popen[bytes]]) -> None:
    with interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
        started.append(subprocess.Popen(["sleep", "60"]))


def test_what_was_started_is_known_when_the_interrupt_comes_through() -> None:
    started: list[subprocess.Popen[bytes]] = []
    with pytest.raises(KeyboardInterrupt):
        _start_while_interrupted(started)
    (process,) = started
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait() == -signal.SIGINT  # the child's own is as ever


def test_afterwards_an_interrupt_comes_at_once() -> None:
    with interrupts_held():
        pass
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_who_ignores_interrupts_goes_on_doing_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
