"""The agent's connection to a programmer in another container, at a socket that both see.

It makes sure of who listens there before it says a word (:mod:`nodeagent.programmer.greeting`).  It is not made again
by itself: whoever does that has to tell the new one everything.
"""

import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from nodeagent.errors import NodeagentError, RefusedError, UnreachableError
from nodeagent.programmer import wire
from nodeagent.programmer.client import SeamClient
from nodeagent.programmer.greeting import compare, own_hello, require_uid

PATIENCE: Final = 60.0
"""Seconds that one answer may take: encoding 100,000 ranges takes a few."""


class ConnectedProgrammer(SeamClient):
    """A :class:`~nodeagent.programmer.seam.Programmer` at the socket *path*, of a process with *uid*.

    Raises:
        UnreachableError: nobody listens there (yet), somebody else does, or it refuses: it says why.
    """

    def __init__(self, path: Path, uid: int) -> None:
        sock = socket.socket(socket.AF_UNIX)
        super().__init__(sock)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(str(path))
            self.pid = require_uid(sock, uid).pid
            compare(self._greet(), f"the programmer at {path}")
        except OSError as error:
            self.close()
            raise UnreachableError(f"no programmer at {path}: {error.strerror or error}") from None
        except RefusedError as error:
            self.close()
            raise UnreachableError(f"the programmer at {path} is not to be talked to: {error}") from None
        except NodeagentError:
            self.close()
            raise

    def _greet(self) -> wire.Hello:
        """Say who we are; return who the other side is, or raise what it says."""
        with suppress(BrokenPipeError, ConnectionResetError):  # it has refused us unheard: its word is there
            wire.send(self._socket, own_hello())
        return self._answer(wire.Hello)
