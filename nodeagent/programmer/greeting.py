"""What two processes that meet at a socket with a path make sure of, before either asks anything.

Who the other one is, the kernel says (``SO_PEERCRED``, unix(7)): the uid that it had when it connected, or when it
began to listen.  Then each says which nodeagent it is, and what it understands; where that differs the two do not
talk, because a container of the pod is being replaced.
"""

import hashlib
import socket
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec

from nodeagent import __version__
from nodeagent.errors import Refusal, RefusedError, UnreachableError, printable
from nodeagent.programmer import wire
from nodeagent.programmer.serving import Request

_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred
_SHOWN: Final = 64


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end; ``pid`` is 0 where our PID namespace does not show it."""

    pid: int
    uid: int


def peer_of(sock: socket.socket) -> Peer:
    """Return who is at the other end, as the kernel noted it."""
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Peer(pid, uid)


def require_uid(sock: socket.socket, uid: int) -> Peer:
    """Return who is at the other end.

    Raises:
        RefusedError: its uid is not *uid*.
    """
    peer = peer_of(sock)
    if peer.uid != uid:
        raise RefusedError(
            f"the other side of the socket has uid {peer.uid}, and only {uid} is talked to", Refusal.NOT_ALLOWED
        )
    return peer


@lru_cache
def own_hello() -> wire.Hello:
    """Return what this process says first."""
    schema = msgspec.json.encode(msgspec.json.schema(Request), order="deterministic")
    return wire.Hello(__version__, hashlib.sha256(schema).hexdigest()[:16])


def compare(theirs: wire.Hello, who: str) -> None:
    """Make sure that *who*, who said *theirs*, is of our version.

    Raises:
        UnreachableError: it is of another one.
    """
    ours = own_hello()
    if theirs == ours:
        return
    names = (printable(value, _SHOWN) for value in (theirs.version, theirs.messages))
    raise UnreachableError(
        "an upgrade is in progress: {who} is nodeagent {} (messages {}), this is {version} ({messages}); they talk "
        "again when both containers run the same image".format(
            *names, who=who, version=ours.version, messages=ours.messages
        )
    )
