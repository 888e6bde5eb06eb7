"""Speak nf_tables' netlink protocol over a raw socket, in the netns that the thread is in.

Promises: a batch that returns has been committed, whole; one that raises changed nothing.  A
dump that returns is one consistent view.  Refuses to guess: a reply that is missing, cut short
or interrupted is an error, never an empty answer.

No netlink library here: this is the process that replays into every pod, and pyroute2 would
cost it 20 MB and 200 ms.  Sources: linux/netlink.h, linux/netfilter/nfnetlink.h, nf_tables.h.
"""

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from enum import IntEnum
from struct import Struct, pack
from types import TracebackType
from typing import Final, NamedTuple, Self

NETLINK_NETFILTER: Final = 12
SOL_NETLINK: Final = 270
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11
SO_SNDBUFFORCE: Final = 32

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

BATCH_BEGIN: Final = 0x10
BATCH_END: Final = 0x11
BATCH_GENID: Final = 1
SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES

RECEIVE: Final = 65536
"""The kernel fills at most 32 KiB of a dump into one datagram."""

DUMP_ATTEMPTS: Final = 16


class Kind(IntEnum):
    """``NFT_MSG_*``."""

    NEWTABLE = 0
    GETTABLE = 1
    DELTABLE = 2
    NEWCHAIN = 3
    GETCHAIN = 4
    DELCHAIN = 5
    NEWRULE = 6
    GETRULE = 7
    DELRULE = 8
    NEWSET = 9
    GETSET = 10
    DELSET = 11
    NEWSETELEM = 12
    GETSETELEM = 13
    DELSETELEM = 14
    NEWGEN = 15
    GETGEN = 16


class Proto(IntEnum):
    """``NFPROTO_*``, as far as tables have them; the names are nft's."""

    unspec = 0
    inet = 1
    ip = 2
    arp = 3
    netdev = 5
    bridge = 7
    ip6 = 10


_HEADER = Struct("=IHHIIBBH")  # nlmsghdr, then nfgenmsg (its resource id is big endian)
_ATTRIBUTE_HEADER: Final = 4
_unpack_attribute = Struct("=HH").unpack_from  # nlattr
_FRAME = Struct("=IHHII")  # nlmsghdr
_ERROR = Struct("=iIHHII")  # nlmsgerr
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER


class NetlinkError(OSError):
    """The kernel's answer to one request: its errno, and which request it was."""

    def __init__(self, number: int, reason: str = "", kind: int | None = None, sequence: int = 0) -> None:
        super().__init__(number, reason or os.strerror(number))
        self.kind = kind
        self.sequence = sequence

    def __str__(self) -> str:
        return f"{self._request()}{self.strerror} (errno {self.errno})"

    def _request(self) -> str:
        if self.kind is None or self.kind >> 8 != SUBSYSTEM:
            return ""
        known = {kind.value: kind.name for kind in Kind}
        return f"{known.get(self.kind & 0xFF, 'a request')}: "


class InterruptedDumpError(NetlinkError):
    """The tables kept changing while they were read: nothing is known; try again."""


class Message(NamedTuple):
    """One nf_tables message; *generation* is the low half of the rule set's generation number."""

    kind: int
    family: int
    generation: int
    body: bytes


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one netlink attribute.

    >>> attribute(1, b"abc").hex()
    '0700010061626300'
    """
    return pack("=HH", len(payload) + 4, kind) + payload + b"\0" * (-len(payload) % 4)


def text_attribute(kind: int, text: str) -> bytes:
    """Return a string as a netlink attribute, with the zero byte that the kernel wants."""
    return attribute(kind, text.encode() + b"\0")


def number_attribute(kind: int, number: int) -> bytes:
    """Return a 32-bit number as nf_tables wants it, big endian."""
    return attribute(kind, number.to_bytes(4, "big"))


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


def message(kind: Kind, body: bytes, flags: int = 0, family: int = Proto.inet, sequence: int = 0) -> bytes:
    """Return one request to nf_tables."""
    header = _HEADER.pack(20 + len(body), SUBSYSTEM << 8 | kind, NLM_F_REQUEST | flags, sequence, 0, family, 0, 0)
    return header + body


def batch(messages: bytes, generation: int | None = None) -> bytes:
    """Return *messages* as one transaction; it fails with ERESTART where *generation* is not the current one.

    At least one of the messages has to carry NLM_F_ACK: see :meth:`NetfilterSocket.commit`.
    """
    resource = socket.htons(SUBSYSTEM)
    check = b"" if generation is None else number_attribute(BATCH_GENID, generation)
    begin = _HEADER.pack(20 + len(check), BATCH_BEGIN, NLM_F_REQUEST, 0, 0, 0, 0, resource) + check
    return begin + messages + _HEADER.pack(20, BATCH_END, NLM_F_REQUEST, 0, 0, 0, 0, resource)


class NetfilterSocket:
    """A netlink socket of the current netns; as a context manager it is closed by *close*."""

    def __init__(self, close: Callable[[socket.socket], None] = socket.socket.close) -> None:
        self._close = close
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        except OSError as error:
            raise NetlinkError(error.errno or 0, f"no netfilter netlink socket: {error.strerror}") from None
        self._sequence = 0
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):  # answers carry a reason, and not all of the request
            self._socket.setsockopt(SOL_NETLINK, option, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(self._socket)

    def dump(self, kind: Kind, family: int = Proto.unspec, body: bytes = b"") -> list[Message]:
        """Return all that *kind* (``GET…``) finds, as of one moment.

        Raises:
            InterruptedDumpError: the tables changed during each of several attempts.
            NetlinkError: the kernel's own answer, such as ENOENT.
        """
        for _ in range(DUMP_ATTEMPTS):
            found = self._dump_once(kind, family, body)
            if found is not None:
                return found
        raise InterruptedDumpError(errno.EINTR, "the tables keep changing while they are read")

    def get(self, kind: Kind, body: bytes = b"", family: int = Proto.inet) -> Message:
        """Return the one answer to *kind* (``GET…``); NetlinkError where there is none."""
        self._send(kind, family, body, 0)
        for code, flags, payload in _frames(self._socket.recv(RECEIVE)):
            if code == NLMSG_ERROR:
                raise _answer(payload, flags) or NetlinkError(errno.EBADMSG, "the kernel's reply is empty")
            return _message(code, payload)
        raise NetlinkError(errno.EBADMSG, "the kernel's reply is empty")

    def generation(self) -> int:
        """Return the generation number of the netns' rule set; each commit of anybody adds one."""
        reply = self.get(Kind.GETGEN, family=Proto.unspec)
        return int.from_bytes(dict(attributes(reply.body))[1], "big")

    def commit(self, transaction: bytes) -> None:
        """Send what :func:`batch` returned, and make sure that it took effect.

        The kernel drops a batch without its end in silence, so a missing acknowledgement is an
        error.  A failure at the very end comes beside acknowledgements, so all replies count.
        """
        self._send_large(transaction)
        acknowledged, failure = False, None
        for error in self._answers():
            acknowledged |= error is None
            failure = failure or error
        if failure:
            raise failure
        if not acknowledged:
            raise NetlinkError(errno.EBADMSG, "the kernel did not acknowledge the batch")

    def _send(self, kind: Kind, family: int, body: bytes, flags: int) -> None:
        self._sequence += 1
        self._socket.send(message(kind, body, flags, family, self._sequence))

    def _send_large(self, transaction: bytes) -> None:
        """Send at once, as a batch has to be; a socket takes no more than its buffer could hold (208 KiB at first)."""
        if len(transaction) > self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 64:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, len(transaction))
            except PermissionError:  # CAP_NET_ADMIN in this user namespace only: as much as net.core.wmem_max allows
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(transaction))
        try:
            self._socket.send(transaction)
        except OSError as error:
            size = f"a batch of {len(transaction) // 1024} KiB"
            reasons = {
                errno.EMSGSIZE: f"{size} is more than net.core.wmem_max lets a process without CAP_NET_ADMIN send",
                errno.ENOBUFS: f"the kernel has no memory for {size}",
            }
            raise NetlinkError(error.errno or 0, reasons.get(error.errno or 0, "")) from None

    def _answers(self) -> Iterator[NetlinkError | None]:
        """Return the answers that wait: nf_tables has queued all of them before send() returns."""
        while True:
            try:
                data = self._socket.recv(RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:  # ENOBUFS: answers are lost, and one of them may have been an error
                raise NetlinkError(error.errno or 0, "the kernel's answers were lost") from None
            yield from (_answer(payload, flags) for code, flags, payload in _frames(data) if code == NLMSG_ERROR)

    def _dump_once(self, kind: Kind, family: int, body: bytes) -> list[Message] | None:
        self._send(kind, family, body, NLM_F_DUMP)
        found: list[Message] = []
        interrupted = 0
        while True:
            for code, flags, payload in _frames(self._socket.recv(RECEIVE)):
                interrupted |= flags & NLM_F_DUMP_INTR
                if code in (NLMSG_DONE, NLMSG_ERROR):
                    if failure := _answer(payload, flags):
                        raise failure
                    return None if interrupted else found
                found.append(_message(code, payload))


def parse(stream: bytes) -> list[Message]:
    """Return the messages that :func:`message` made, in order."""
    return [_message(code, payload) for code, _, payload in _frames(stream)]


def _frames(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Return (type, flags, payload) of each netlink message in a datagram."""
    offset, end = 0, len(data)
    while offset + _FRAME.size <= end:
        length, code, flags, _, _ = _FRAME.unpack_from(data, offset)
        if not _FRAME.size <= length <= end - offset:
            raise NetlinkError(errno.EBADMSG, "the kernel's reply is cut short")
        yield code, flags, data[offset + _FRAME.size : offset + length]
        offset += length + 3 & ~3


def _message(code: int, payload: bytes) -> Message:
    return Message(code & 0xFF, payload[0], payload[2] << 8 | payload[3], payload[4:])


def _answer(payload: bytes, flags: int) -> NetlinkError | None:
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
