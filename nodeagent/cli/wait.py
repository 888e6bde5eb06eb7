"""``wait``: until the rules of the pod that we run in stand.  For an init container; it needs no privilege."""

import argparse
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from nodeagent.cli.output import print_error, say
from nodeagent.errors import InputError, UnreachableError, printable
from nodeagent.web.question import LENGTH, NOT_YET, QUESTION

_PAUSES: Final = (0.05, 1.0)
"""Seconds between two questions, at first and at most."""


def run_wait(arguments: argparse.Namespace) -> int:
    """Ask until the rules stand (0), or time is over: 1 if they do not, UnreachableError if nobody answered."""
    host, port = _place(arguments.agent or _default())
    said = ""
    for said in _answers(host, port, time.monotonic() + arguments.timeout):
        if not said.startswith(NOT_YET):
            say(said)
            return 0
    if not said:
        raise UnreachableError(f"no agent answered at {host}, port {port}, within {arguments.timeout:g} s")
    print_error(said)
    return 1


def _answers(host: str, port: int, deadline: float) -> Iterator[str]:
    """Yield what the agent says, each time it is asked, until *deadline*."""
    pause, longest = _PAUSES
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(min(pause, left))
            begin = time.monotonic()
            with suppress(OSError):  # nobody listens there yet, or the answer is lost
                sock.connect((host, port))
                sock.send(QUESTION.ljust(LENGTH, b"\0"))
                yield printable(sock.recv(LENGTH).decode(errors="replace"), LENGTH)
            time.sleep(max(0.0, min(pause - (time.monotonic() - begin), deadline - time.monotonic())))
            pause = min(2 * pause, longest)


def _default() -> str:
    host = os.environ.get("HOST_IP", "")
    if not host:
        raise InputError("which agent?  Give --agent HOST:PORT, or HOST_IP in the environment (status.hostIP)")
    return f"[{host}]:9640" if ":" in host else f"{host}:9640"


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        raise InputError(f"'{printable(text)}' is not HOST:PORT")
    return host.strip("[]"), int(port)
