"""The programmer's socket: one agent at a time, whom the kernel vouches for, and who keeps nobody waiting.

| who comes | what happens |
|---|---|
| a process of another uid | told so, and closed: nothing of it is read |
| an agent of another version | told so, and closed |
| a second agent | told so, and closed; the first one stays |
| one that says nothing, stops in the middle, or does not take its answer | closed when its time is over |
| one that sends too much at once, or nothing at all (a length of zero) | closed |
| what is no request | answered with an error, as are faults of ours |
| descriptors that somebody sends along | never taken |

The agent's end is no end of ours: what was learnt for one agent is there for the next.
"""

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog

from nodeagent.errors import BusyError, InputError, KernelError, NodeagentError, UnreachableError
from nodeagent.programmer import wire
from nodeagent.programmer.conversation import Allow, respond
from nodeagent.programmer.greeting import compare, own_hello, require_uid
from nodeagent.programmer.serving import Served

LARGEST_REQUEST: Final = 16 << 20
"""Bytes: a rule set of 100,000 ranges takes about 2 MB."""
_GREETING_SECONDS: Final = 5.0
_MESSAGE_SECONDS: Final = 10.0
"""From the first byte of a request to its last, and for the whole of an answer."""
_LARGEST_HELLO: Final = 4096
_MASK: Final = 0o117
"""Owner and group may connect: of a volume with an fsGroup, new files have that group."""
_WAITING: Final = 4


class Listener:
    """Serves agents of the uid *uid* at *path*, which nobody else listens at."""

    def __init__(self, path: Path, uid: int) -> None:
        """Begin to listen, in the place of a programmer that has ended.

        Raises:
            KernelError: that is not possible.
        """
        self._uid = uid
        self._agent: socket.socket | None = None
        _remove_dead(path)
        self._socket = socket.socket(socket.AF_UNIX)
        before = os.umask(_MASK)  # not chmod: by then the name could be somebody else's
        try:
            self._socket.bind(str(path))
            self._socket.listen(_WAITING)
        except OSError as error:
            self._socket.close()
            raise KernelError(f"cannot listen at {path}: {error.strerror or error}") from None
        finally:
            os.umask(before)

    def close(self) -> None:
        """Take leave of the agent, and of the socket; its name stays for the next programmer."""
        self._drop()
        self._socket.close()

    def run(self, served: Served, allow: Allow, stop: int) -> None:
        """Answer until the descriptor *stop* can be read."""
        while True:
            ready = self._ready(stop)
            if stop in ready:
                return
            if self._agent and self._agent.fileno() in ready:  # before newcomers: who has gone is noticed first
                self._answer(served, allow)
            if self._socket.fileno() in ready:
                self._welcome()

    def _ready(self, stop: int) -> set[int]:
        """Wait until there is something to do; return where."""
        poll = select.poll()
        poll.register(stop, select.POLLIN)
        poll.register(self._socket, select.POLLIN)
        if self._agent:
            poll.register(self._agent, select.POLLIN)
        return {descriptor for descriptor, _ in poll.poll()}

    def _welcome(self) -> None:
        """Let a newcomer be our agent, or tell it why not."""
        sock, _ = self._socket.accept()
        with _closed_unless_kept(sock) as keep:
            sock.settimeout(_GREETING_SECONDS)
            try:
                peer = require_uid(sock, self._uid)
                if self._agent:
                    raise BusyError("another agent is connected to this programmer: end one of the two, or wait")
                compare(_hello(sock), "the agent that connects")
                wire.send(sock, wire.Success(msgspec.Raw(msgspec.json.encode(own_hello()))))
            except (NodeagentError, OSError) as error:
                structlog.get_logger().warning("nobody for us to talk to", error=str(error))
                with suppress(OSError):
                    wire.send(sock, wire.Failure(UnreachableError.__name__, f"refused: {error}"))
                return
            structlog.get_logger().info("an agent is here", process=peer.pid, uid=peer.uid)
            self._agent = sock
            keep.append(sock)

    def _answer(self, served: Served, allow: Allow) -> None:
        assert self._agent  # noqa: S101  # only asked of one that is there
        try:
            data = wire.receive(self._agent, LARGEST_REQUEST, _MESSAGE_SECONDS)
            if data is not None:
                self._agent.settimeout(_MESSAGE_SECONDS)
                respond(self._agent, served, data, allow)
                return
            why = "it has closed its end"
        except (OSError, UnreachableError) as error:
            why = str(error)
        structlog.get_logger().warning("the agent has gone", why=why)
        self._drop()

    def _drop(self) -> None:
        if self._agent:
            self._agent.close()
        self._agent = None


def _hello(sock: socket.socket) -> wire.Hello:
    data = wire.receive(sock, _LARGEST_HELLO, _GREETING_SECONDS)
    if data is None:
        raise UnreachableError("it has closed without a word")
    try:
        return msgspec.json.decode(data, type=wire.Hello)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InputError("it does not say who it is") from None


def _remove_dead(path: Path) -> None:
    """Remove the name of a socket that nobody listens at any more.

    Raises:
        KernelError: somebody does.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # noqa: FBT003  # the standard library's signature
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # its queue is full, so it lives
    raise KernelError(f"another programmer listens at {path}: end it, or give this one a socket of its own")


@contextmanager
def _closed_unless_kept(sock: socket.socket) -> Iterator[list[socket.socket]]:
    kept: list[socket.socket] = []
    try:
        yield kept
    finally:
        if sock not in kept:
            sock.close()
