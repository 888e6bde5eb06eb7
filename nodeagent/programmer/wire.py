"""What goes over the seam's socket: one length-prefixed JSON message each way per verb.

Messages are typed and closed: what is not of their form is refused whole.  Errors travel as
the name of their class and their message, and are raised again on the other side.
"""

import os
import socket
import struct
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


def receive(sock: socket.socket) -> bytes | None:
    """Return the bytes of the next message, None if the other side has closed.

    Raises:
        errors.UnreachableError: the other side closed in the middle, or sends too much.
    """
    head = _receive_exactly(sock, _LENGTH.size)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > LIMIT:
        message = f"the other side sends {length} bytes at once; at most {LIMIT} are taken"
        raise errors.UnreachableError(message)
    body = _receive_exactly(sock, length)
    if not body:
        message = "the other side closed in the middle of a message"
        raise errors.UnreachableError(message)
    return body


def _receive_exactly(sock: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
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


def raise_failure(failure: Failure) -> None:
    """Raise the error that *failure* names."""
    if failure.reason:
        raise errors.RefusedError(failure.message, failure.reason)
    kind = getattr(errors, failure.error, errors.KernelError)
    raise kind(failure.message)
