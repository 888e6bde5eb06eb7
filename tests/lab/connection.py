"""One open connection, or one UDP socket that keeps its port, and the proof that it still works."""

import errno
import socket
import struct
from typing import TYPE_CHECKING, Self

from tests.lab.wire import HELLO, Greeting

if TYPE_CHECKING:
    from tests.lab.outcome import Outcome

_TCP_CLOSE = 7  # net/tcp_states.h


class Connection:
    """An open path to a peer.  `outcome` says whose; `echo` proves that it is still open, and who is there now."""

    def __init__(self, sock: socket.socket) -> None:
        """Take *sock*, connected and with its time limit set; it is closed with this object."""
        self.sock = sock
        self.outcome: Outcome
        self._pending = b""
        self._is_stream = sock.type == socket.SOCK_STREAM
        self._echoes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, token: str) -> tuple[tuple[Greeting, ...], str]:
        """Send *token*; return the greetings met on the way to its echo, and who echoed it.

        ConnectionResetError if the connection was broken, also by an orderly end; TimeoutError if nobody answers.
        """
        self.sock.sendall(HELLO + token.encode() + b"\n")
        hops: list[Greeting] = []
        while True:
            line = self._line()
            if greeting := Greeting.parse(line):
                hops.append(greeting)
            elif (said := line.decode().split())[1:] == [token]:
                return tuple(hops), said[0]

    def echo(self) -> str:
        """Prove that the path works both ways; return who is at its far end; errors as `ask`."""
        self._echoes += 1
        return self.ask(f"{self.outcome.token}.{self._echoes}")[1]

    def hear(self) -> tuple[str, str]:
        """Wait for a peer to speak first (`Peer.say`); return who spoke, and what; errors as `ask`."""
        who, _, token = self._line().decode().partition(" ")
        return who, token

    def is_reset(self) -> bool:
        """Tell whether a reset has come in so far; it takes nothing from what `hear` and `echo` will find."""
        return self._is_stream and self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE

    def close(self) -> None:
        """Close in an orderly way."""
        self.sock.close()

    def abort(self) -> None:
        """Close with a reset, which leaves no TIME_WAIT behind."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _line(self) -> bytes:
        while b"\n" not in self._pending:
            data = self.sock.recv(65536)
            if not data and self._is_stream:
                raise ConnectionResetError(errno.ECONNRESET, "the peer ended the connection")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line
