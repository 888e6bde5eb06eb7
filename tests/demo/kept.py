"""After the acts: the agent stays, and with it its web page, until Ctrl-C."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress

from tests.demo.stage import say
from tests.lab.agent import RunningAgent

_USUAL = 9641
_PAUSE_SECONDS = 2.0


def page_place() -> str:
    """Return where the page will be on this machine, loopback only: at the product's own port, unless it is taken."""
    for port in (_USUAL, 0):
        with socket.socket() as sock, suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            return "{}:{}".format(*sock.getsockname())
    raise OSError("this machine has no free port on 127.0.0.1")


def keep(agent: RunningAgent, talk: Callable[[], None]) -> None:
    """Let the pod talk now and then until Ctrl-C."""
    say(f"It stays until Ctrl-C, and the pod goes on talking.  Look at http://{agent.api_at}/")
    with suppress(KeyboardInterrupt):
        while True:
            talk()
            time.sleep(_PAUSE_SECONDS)
    say("\nCtrl-C: everything is removed.")
