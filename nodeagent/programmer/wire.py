"""What goes over the seam's socket: one length-prefixed JSON message each way per verb.

Messages are typed and closed: what is not of their form is refused whole.  Errors travel as
the name of their class and their message, and are raised again on the other side.
"""

import os
import socket
import struct
import time
from ipaddress import ip_address
from typing import Final

import msgspec

from nodeagent import errors
from nodeagent.model import BackendName
from nodeagent.netns.inhabited import PodNetns
from nodeagent.programmer.seam import Applied, Choice, Cleared, Observation, Target

LIMIT: Final = 64 << 20
"""Bytes of one message: a rule set of 100,000 ranges takes about 2 MB."""

_LENGTH = struct.Struct("!I")
_DESCRIPTOR = b"\0"
_SHORTEST: Final = 0.001
"""Seconds: a timeout of zero would mean not to wait at all, and to fail in another way."""


class TargetMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A :class:`~nodeagent.programmer.seam.Target`."""

    netns: str | int | PodNetns
    addresses: tuple[str, ...] = ()
    cookie: int | None = None

    @classmethod
    def of(cls, target: Target) -> "TargetMessage":
        """Return the message for *target*."""
        return cls(target.netns, tuple(map(str, target.addresses)), target.cookie)

    def target(self) -> Target:
        """Return the target.

        Raises:
            InputError: an address is none.
        """
        try:
            return Target(self.netns, tuple(map(ip_address, self.addresses)), self.cookie)
        except ValueError as error:
            message = f"not a target that the programmer knows: {error}"
            raise errors.InputError(message) from None


class Observe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="observe"):
    """Ask for an observation; ``ruleset`` is in canonical form."""

    target: TargetMessage
    ruleset: str | None
    choice: Choice


class Apply(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="apply"):
    """Ask to apply; ``ruleset`` is in canonical form."""

    target: TargetMessage
    ruleset: str
    choice: Choice


class Clear(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="clear"):
    """Ask to clear."""

    target: TargetMessage
    now: bool


class Backends(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="backends"):
    """Ask what this node can use."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """What either side of a socket with a path says first: which nodeagent it is, and a digest of what it understands.

    Read by all versions, so fields may be added, and none removed.
    """

    version: str
    messages: str


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="failure"):
    """An error, to be raised again by its class's name."""

    error: str
    message: str
    reason: errors.Refusal | None = None


class Success(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="success"):
    """An answer: the JSON of what the verb returns."""

    result: msgspec.Raw


Request = Observe | Apply | Clear | Backends
Result = Observation | Applied | Cleared | dict[BackendName, str | None]


def send(sock: socket.socket, message: object) -> None:
    """Send one message."""
    data = msgspec.json.encode(message)
    sock.sendall(_LENGTH.pack(len(data)) + data)


def receive(sock: socket.socket, limit: int = LIMIT, within: float | None = None) -> bytes | None:
    """Return the bytes of the next message, None if the other side has closed.

    *within*: seconds that the whole message may take; else the socket's own timeout holds for each part.

    Raises:
        errors.UnreachableError: the other side closed in the middle, takes too long, or sends more than *limit*.
    """
    deadline = None if within is None else time.monotonic() + within
    head = _receive_exactly(sock, _LENGTH.size, deadline)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    if not 0 < length <= limit:
        message = f"the other side sends {length} bytes at once; 1 to {limit} are taken"
        raise errors.UnreachableError(message)
    body = _receive_exactly(sock, length, deadline)
    if not body:
        message = "the other side closed in the middle of a message"
        raise errors.UnreachableError(message)
    return body


def _receive_exactly(sock: socket.socket, length: int, deadline: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        if deadline is not None:
            sock.settimeout(max(deadline - time.monotonic(), _SHORTEST))
        part = sock.recv(min(length - len(parts), 1 << 20))
        if not part:
            if parts:
                message = "the other side closed in the middle of a message"
                raise errors.UnreachableError(message)
            break
        parts += part
    return bytes(parts)


def send_descriptor(sock: socket.socket, descriptor: int) -> None:
    """Send a descriptor behind the message that announces it."""
    socket.send_fds(sock, [_DESCRIPTOR], [descriptor])


def receive_descriptor(sock: socket.socket) -> int:
    """Return the descriptor behind the last message.

    Raises:
        errors.UnreachableError: the other side closed instead.
    """
    _, descriptors, _, _ = socket.recv_fds(sock, len(_DESCRIPTOR), 1)
    if not descriptors:
        raise errors.UnreachableError("the other side closed in the middle of an answer")
    os.set_inheritable(descriptors[0], False)  # noqa: FBT003  # the standard library's signature
    return descriptors[0]


def failure_of(error: errors.NodeagentError) -> Failure:
    """Return what the other side makes the same error of."""
    reason = error.reason if isinstance(error, errors.RefusedError) else None
    return Failure(type(error).__name__, str(error), reason)


def error_of(failure: Failure) -> errors.NodeagentError:
    """Return the error that *failure* names, to be raised again."""
    if failure.reason:
        return errors.RefusedError(failure.message, failure.reason)
    kind = getattr(errors, failure.error, None)
    if isinstance(kind, type) and issubclass(kind, errors.NodeagentError):
        return kind(failure.message)
    return errors.KernelError(failure.message)
