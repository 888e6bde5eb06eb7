"""Close netfilter sockets without waiting for the kernel.

Closing one waits until all rules that anybody has deleted are freed, a grace period of RCU
later (``nft_rcv_nl_event``; measured: 10 to 20 ms, where replacing the rules took 0.2).  That
wait belongs to a thread that has nothing else to do.  The socket keeps its netns alive until then.
"""

import socket
import time
from queue import SimpleQueue
from threading import Thread
from typing import Final

_GATHER_SECONDS: Final = 0.005
"""Who visits many namespaces brings many: to wake this thread for each costs the visitor more than closing does."""


class Closer:
    """Closes what it is called with, soon, in order.

    Make it in the netns that the process lives in: its thread stays there for good.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[socket.socket] = SimpleQueue()
        Thread(target=self._run, name="closer", daemon=True).start()

    def __call__(self, waiting: socket.socket) -> None:
        """Close *waiting* soon; the caller must not use it any more."""
        self._waiting.put(waiting)

    def _run(self) -> None:
        while True:
            waiting = [self._waiting.get()]
            time.sleep(_GATHER_SECONDS)
            while not self._waiting.empty():
                waiting.append(self._waiting.get())
            for each in waiting:
                each.close()
