"""Netlink over a raw socket, in the netns that the thread is in: what every family of it shares.

Refuses to guess: a reply that is missing, cut short or interrupted is an error, never an empty
answer.  No library: this is for the process that programs pods, which pyroute2 would cost
20 MB and 200 ms.  Sources: ``linux/netlink.h``, ``linux/rtnetlink.h``, ``netlink(7)``.
"""

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from struct import Struct, pack
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeAlias

Close: TypeAlias = Callable[[socket.socket], None]

NETLINK_NETFILTER: Final = 12
NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP: Final = 0x300
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_CAPPED: Final = 0x100
NLM_F_ACK_TLVS: Final = 0x200
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLMSGERR_ATTR_MSG: Final = 1
NLA_F_NESTED: Final = 0x8000

RECEIVE: Final = 65536
"""The kernel fills at most 32 KiB of a dump into one datagram."""

DUMP_ATTEMPTS: Final = 16

_ATTRIBUTE_HEADER: Final = 4
_unpack_attribute = Struct("=HH").unpack_from  # nlattr
_FRAME = Struct("=IHHII")  # nlmsghdr
_ERROR = Struct("=iIHHII")  # nlmsgerr
_TYPE_MASK: Final = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER


class NetlinkError(OSError):
    """The kernel's answer to one request: its errno, and which request it was."""

    def __init__(self, number: int, reason: str = "", kind: int | None = None, sequence: int = 0) -> None:
        super().__init__(number, reason or os.strerror(number))
        self.kind = kind
        self.sequence = sequence


class InterruptedDumpError(NetlinkError):
    """The tables kept changing while they were read: nothing is known; try again."""


class TooMuchError(NetlinkError):
    """There is more than was to be read.  The socket is left half read: of no further use."""


class Frame(NamedTuple):
    """One netlink message: its type, its flags, and what follows the header."""

    kind: int
    flags: int
    payload: bytes


class Datagram(NamedTuple):
    """What the kernel sent at once: its bytes, and where in them the payload of each message starts and ends."""

    data: bytes
    bounds: list[tuple[int, int]]


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one netlink attribute.

    >>> attribute(1, b"abc").hex()
    '0700010061626300'
    """
    return pack("=HH", len(payload) + 4, kind) + payload + b"\0" * (-len(payload) % 4)


def attributes(data: bytes) -> list[tuple[int, bytes]]:
    """Return (type, payload) of the attributes in *data*; NetlinkError if it is not well formed.

    >>> attributes(attribute(1, b"abc") + attribute(2, b""))
    [(1, b'abc'), (2, b'')]
    """
    found: list[tuple[int, bytes]] = []  # a list, and all of it at once: most of a reading's time goes here
    offset, end = 0, len(data)
    while offset + _ATTRIBUTE_HEADER <= end:
        length, kind = _unpack_attribute(data, offset)
        if not _ATTRIBUTE_HEADER <= length <= end - offset:
            raise NetlinkError(errno.EBADMSG, "the kernel's reply is cut short")
        found.append((kind & _TYPE_MASK, data[offset + _ATTRIBUTE_HEADER : offset + length]))
        offset += length + 3 & ~3
    return found


def string(data: bytes | None) -> str:
    """Return a string attribute's text; bytes that are not UTF-8 come out as escapes."""
    return (data or b"").rstrip(b"\0").decode("utf-8", "backslashreplace")


def frame(kind: int, flags: int, payload: bytes, sequence: int = 0) -> bytes:
    """Return one netlink message."""
    return _FRAME.pack(_FRAME.size + len(payload), kind, flags, sequence, 0) + payload


def frames(data: bytes) -> Iterator[Frame]:
    """Return the netlink messages in a datagram."""
    return (Frame(kind, flags, data[start:end]) for start, end, kind, flags in _bounds(data))


def _bounds(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Return start and end of each message's payload, its type and its flags."""
    offset, end = 0, len(data)
    while offset + _FRAME.size <= end:
        length, kind, flags, _, _ = _FRAME.unpack_from(data, offset)
        if not _FRAME.size <= length <= end - offset:
            raise NetlinkError(errno.EBADMSG, "the kernel's reply is cut short")
        yield offset + _FRAME.size, offset + length, kind, flags
        offset += length + 3 & ~3


def answer(payload: bytes, flags: int) -> NetlinkError | None:
    """Return what the payload of NLMSG_ERROR or NLMSG_DONE says; None is an acknowledgement."""
    number = -int.from_bytes(payload[:4], sys.byteorder, signed=True)
    if number == 0:
        return None
    if len(payload) < _ERROR.size:  # the end of a dump
        return NetlinkError(number)
    _, length, code, _, sequence, _ = _ERROR.unpack_from(payload)
    reason = ""
    if flags & NLM_F_ACK_TLVS:
        copied = 16 if flags & NLM_F_CAPPED else length + 3 & ~3
        reason = string(dict(attributes(payload[4 + copied :])).get(NLMSGERR_ATTR_MSG))
    return NetlinkError(number, reason and f"{reason}: {os.strerror(number)}", code, sequence)


class Link:
    """A netlink socket of the current netns; as a context manager it is closed by *close*."""

    def __init__(self, protocol: int, close: Close = socket.socket.close) -> None:
        self._close = close
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise NetlinkError(error.errno or 0, f"no netlink socket: {error.strerror}") from None
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(self._socket)

    def dump_frames(self, kind: int, payload: bytes, most: int | None = None) -> list[Frame]:
        """Return all that *kind* finds, as of one moment; not more than *most* bytes of it.

        Raises:
            InterruptedDumpError: the tables changed during each of several attempts.
            TooMuchError: it is more.
            NetlinkError: the kernel's own answer, such as ENOENT.
        """
        for _ in range(DUMP_ATTEMPTS):
            self.send(kind, NLM_F_REQUEST | NLM_F_DUMP, payload)
            found, interrupted = self._collect(most)
            if not interrupted:
                return found
        raise InterruptedDumpError(errno.EINTR, "the tables keep changing while they are read")

    def dump_datagrams(self, kind: int, payload: bytes) -> Iterator["Datagram"]:
        """Yield all that *kind* finds as it comes, unparsed and unkept; read it to its end.

        Raises:
            InterruptedDumpError: the tables changed meanwhile; what came before is no clean view.
            NetlinkError: the kernel's own answer, such as ENOENT.
        """
        self.send(kind, NLM_F_REQUEST | NLM_F_DUMP, payload)
        done = interrupted = False
        while not done:
            data = self._socket.recv(RECEIVE)
            bounds: list[tuple[int, int]] = []
            for start, end, found, flags in _bounds(data):
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if found in (NLMSG_DONE, NLMSG_ERROR):
                    if failure := answer(data[start:end], flags):
                        raise failure
                    done = True
                else:
                    bounds.append((start, end))
            if bounds and not interrupted:
                yield Datagram(data, bounds)
        if interrupted:
            raise InterruptedDumpError(errno.EINTR, "the tables keep changing while they are read")

    def request(self, kind: int, payload: bytes) -> None:
        """Send one message and wait for its acknowledgement; NetlinkError where it is refused."""
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK, payload)
        self._collect()

    def ask(self, kind: int, payload: bytes) -> list[Frame]:
        """Return the answer to a request that is no dump; NetlinkError where it is refused."""
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK, payload)
        return self._collect()[0]

    def send(self, kind: int, flags: int, payload: bytes) -> None:
        """Send one message."""
        self._sequence += 1
        self._socket.send(frame(kind, flags, payload, self._sequence))

    def _collect(self, most: int | None = None) -> tuple[list[Frame], bool]:
        """Return the messages up to the end of the answer, and whether they are no clean view."""
        found: list[Frame] = []
        interrupted = size = 0
        while True:
            data = self._socket.recv(RECEIVE)
            size += len(data)
            if most is not None and size > most:
                raise TooMuchError(errno.EFBIG, f"more than {most // 1024} KiB")
            for received in frames(data):
                interrupted |= received.flags & NLM_F_DUMP_INTR
                if received.kind in (NLMSG_DONE, NLMSG_ERROR):
                    if failure := answer(received.payload, received.flags):
                        raise failure
                    return found, bool(interrupted)
                found.append(received)
