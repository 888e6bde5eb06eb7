"""HTTP to a server inside a namespace, from the test process, which stays outside."""

import http.client
import socket

from tests.lab.netns import Netns


class NetnsConnection(http.client.HTTPConnection):
    """A connection to *place* (``ADDRESS:PORT``) of *netns*; of the test's own namespace if that is None."""

    def __init__(self, place: str, netns: Netns | None, timeout: float) -> None:
        super().__init__(place, timeout=timeout)
        self._netns = netns

    def connect(self) -> None:
        """Connect with a socket of the namespace."""
        if self._netns is None:
            super().connect()
            return
        self.sock = self._netns.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect((self.host, self.port))
