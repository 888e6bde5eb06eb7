"""The child's side of the seam: what :mod:`nodeagent.programmer.process` starts.

Apart from the client, because whoever only asks need not have all of this in memory.
"""

import contextlib
import socket
import sys
from pathlib import Path

import msgspec

from nodeagent.errors import NodeagentError
from nodeagent.log import Logging, configure_logging
from nodeagent.programmer import wire
from nodeagent.programmer.conversation import serve, settle
from nodeagent.runtime.priority import hurry


def main(descriptor: int, proc: Path, logging: Logging) -> None:
    """Settle in an empty namespace, say so, serve."""
    configure_logging(logging)
    hurry()
    with socket.socket(fileno=descriptor) as sock, contextlib.suppress(BrokenPipeError):
        try:
            served = settle(proc)
        except NodeagentError as error:
            wire.send(sock, wire.Failure(type(error).__name__, str(error)))
            return
        wire.send(sock, wire.Success(msgspec.Raw(b"{}")))
        serve(sock, served)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Logging(*sys.argv[3:]))
