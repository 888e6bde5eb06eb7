"""What the lab's processes say to each other, and what its peers say to clients.  No process is started here.

Between the test process and its children: frames, that is a length and JSON, with at most one descriptor
riding on the first byte.  Between peers and clients: lines of text, so that `nc` is a client too:

- a peer *greets*: `who at-address at-port original-address original-port source-address source-port`;
- a client says `lab TOKEN`, and the peer *echoes*: `who TOKEN`.
"""

import json
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

Address: TypeAlias = tuple[str, int]
"""An IP address in its canonical text, and a port."""

HELLO = b"lab "
"""How a client's line starts; DNS messages never start like this."""

_LENGTH = struct.Struct(">I")
_DESCRIPTOR = struct.Struct("=i")
_NOWHERE = "-"


@dataclass(frozen=True, slots=True)
class Greeting:
    r"""What one end of a connection says about itself and about the connection it has.

    *at* is the address the peer's own socket has: a redirect shows in it.  *original* is what was dialled as
    far as the kernel tells the peer: SO_ORIGINAL_DST at the sidecar, *at* itself in the world; None if unknown.

    >>> Greeting("world", ("203.0.113.10", 443), None, ("10.244.1.5", 40000)).encode()
    b'world 203.0.113.10 443 - 0 10.244.1.5 40000\n'
    """

    who: str
    at: Address
    original: Address | None
    source: Address

    def encode(self) -> bytes:
        """Return the line, with its newline."""
        original = self.original or (_NOWHERE, 0)
        return " ".join(map(str, (self.who, *self.at, *original, *self.source))).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Self | None:
        """Return the greeting in *line*, or None if the line is something else."""
        match line.decode("ascii", "replace").split():
            case [who, at, at_port, original, original_port, source, source_port]:
                dialled = None if original == _NOWHERE else (original, int(original_port))
                return cls(who, (at, int(at_port)), dialled, (source, int(source_port)))
        return None


def echo_line(who: str, token: str) -> bytes:
    """Return what *who* answers to `lab TOKEN`."""
    return f"{who} {token}\n".encode()


def frame(payload: object) -> bytes:
    """Return *payload* as one frame."""
    body = json.dumps(payload, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


def send_frame(sock: socket.socket, payload: object, descriptors: tuple[int, ...] = ()) -> None:
    """Send *payload*, and copies of *descriptors* with it."""
    data = frame(payload)
    sent = socket.send_fds(sock, [data], descriptors)
    sock.sendall(data[sent:])


def receive_frame(sock: socket.socket) -> tuple[Any, list[int]]:
    """Return the next payload and the descriptors that came with it; EOFError when the other side has gone."""
    # Not socket.recv_fds: Python 3.11's takes flags and forgets them, so that a descriptor would leak into children.
    head, control, _, _ = sock.recvmsg(_LENGTH.size, socket.CMSG_SPACE(_DESCRIPTOR.size), socket.MSG_CMSG_CLOEXEC)
    descriptors = [descriptor for *_, data in control for (descriptor,) in _DESCRIPTOR.iter_unpack(data)]
    try:
        head += _exactly(sock, _LENGTH.size - len(head))
        return json.loads(_exactly(sock, _LENGTH.unpack(head)[0])), descriptors
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def _exactly(sock: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError("the other side of a lab channel has gone")
        parts += part
    return bytes(parts)


def failure(error: OSError) -> dict[str, object]:
    """Return the reply that makes the caller raise *error* again."""
    return {"errno": error.errno, "error": error.strerror or str(error)}
