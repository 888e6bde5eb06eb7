"""The bytes of a runtime's NRI socket into ttrpc frames, and back.  Pure: no I/O, no clock.

Two protocols lie on top of each other.  The mux carries several connections over one socket: a
header (connection, length; 32 bits each) before each piece.  Each of its connections carries
ttrpc: a header (length, stream, kind, flags; 32, 32, 8 and 8 bits), then one protobuf message.
All numbers are big-endian.  A ttrpc frame may come in many pieces, with others' in between.

Promises: any bytes, in any portions, become frames or a :class:`ProtocolError`; no more than one
frame per service is ever kept.  Refuses what is longer than ttrpc allows before it is read.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from nodeagent.errors import NodeagentError

LARGEST = 4 * 1024 * 1024
"""Bytes of one message: ttrpc's own limit."""

_PIECE = struct.Struct(">II")
_FRAME = struct.Struct(">IIBB")
_LARGEST_PIECE = LARGEST + _FRAME.size


class ProtocolError(NodeagentError):
    """The runtime said what the protocol does not allow: drop the connection, make a new one."""


class Service(IntEnum):
    """A connection of the mux, named after who serves: the other side calls."""

    PLUGIN = 1
    RUNTIME = 2


class Kind(IntEnum):
    """What a frame is; streams of data are not used by NRI."""

    REQUEST = 1
    RESPONSE = 2


@dataclass(frozen=True, slots=True)
class Frame:
    """One ttrpc message; ``stream`` is odd, and pairs a response with its request."""

    service: Service
    stream: int
    kind: Kind
    message: bytes


def encode(frame: Frame) -> bytes:
    """Return *frame* in one piece.

    >>> encode(Frame(Service.RUNTIME, 1, Kind.REQUEST, b"hello")).hex(" ", -4)
    '00000002 0000000f 00000005 00000001 01006865 6c6c6f'
    """
    header = _FRAME.pack(len(frame.message), frame.stream, frame.kind, 0)
    return _PIECE.pack(frame.service, len(header) + len(frame.message)) + header + frame.message


class Decoder:
    """The frames of one connection; useless after its first error."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._service = 0
        self._left = 0
        self._frames = {service: bytearray() for service in Service}

    @property
    def partial(self) -> bool:
        """Whether something has begun that has not ended."""
        return bool(self._header or self._left or any(self._frames.values()))

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that *data* completes; exhaust it before the next call.

        Raises:
            ProtocolError: this is not what a runtime sends.
        """
        rest = memoryview(data)
        while rest:
            if not self._left:
                rest = self._begin(rest)
                continue
            piece, rest = rest[: self._left], rest[self._left :]
            self._left -= len(piece)
            # The mux drops what nobody has opened, on both sides: so may later versions add connections.
            if self._service in self._frames:
                service = Service(self._service)
                self._frames[service] += piece
                yield from self._complete(service)

    def _begin(self, data: memoryview) -> memoryview:
        """Take a piece's header, or a part of it, from *data*; return the rest."""
        missing = _PIECE.size - len(self._header)
        self._header += data[:missing]
        if len(self._header) == _PIECE.size:
            self._service, self._left = _PIECE.unpack(self._header)
            self._header.clear()
            if self._left > _LARGEST_PIECE:
                raise ProtocolError(f"a piece of {self._left} bytes: at most {_LARGEST_PIECE} are allowed")
        return data[missing:]

    def _complete(self, service: Service) -> Iterator[Frame]:
        buffer = self._frames[service]
        while len(buffer) >= _FRAME.size:
            length, stream, kind, _flags = _FRAME.unpack_from(buffer)
            if length > LARGEST:
                raise ProtocolError(f"a message of {length} bytes: at most {LARGEST} are allowed")
            if kind not in set(Kind) or stream % 2 == 0:
                raise ProtocolError(f"a frame of kind {kind} on stream {stream}: no such frame is a runtime's")
            end = _FRAME.size + length
            if len(buffer) < end:
                return
            message = bytes(memoryview(buffer)[_FRAME.size : end])
            del buffer[:end]
            yield Frame(service, stream, Kind(kind), message)
