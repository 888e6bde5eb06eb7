"""Speak nf_tables' netlink protocol over a raw socket, in the netns that the thread is in.

Promises: a batch that returns has been committed, whole; one that raises changed nothing.  A
dump that returns is one consistent view.  Sources: linux/netfilter/nfnetlink.h, nf_tables.h.
"""

import errno
import socket
from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from nodeagent.netlink import (
    NETLINK_NETFILTER,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    RECEIVE,
    Close,
    Datagram,
    Link,
    NetlinkError,
    TooMuchError,
    answer,
    attribute,
    attributes,
    frames,
)

SOL_NETLINK: Final = 270
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11
SO_SNDBUFFORCE: Final = 32

BATCH_BEGIN: Final = 0x10
BATCH_END: Final = 0x11
BATCH_GENID: Final = 1
SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES

MOST_NAMES: Final = 1 << 20
"""Bytes of tables, of chains or of sets that are read at most: some 20,000 of them."""


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
_GENERIC = Struct("=BBH")  # nfgenmsg alone


def request_name(error: NetlinkError) -> str:
    """Return which request *error* answers (``NEWRULE: ``), nothing where it is not nf_tables'."""
    if error.kind is None or error.kind >> 8 != SUBSYSTEM:
        return ""
    known = {kind.value: kind.name for kind in Kind}
    return f"{known.get(error.kind & 0xFF, 'a request')}: "


class Message(NamedTuple):
    """One nf_tables message; *generation* is the low half of the rule set's generation number."""

    kind: int
    family: int
    generation: int
    body: bytes


def text_attribute(kind: int, text: str) -> bytes:
    """Return a string as a netlink attribute, with the zero byte that the kernel wants."""
    return attribute(kind, text.encode() + b"\0")


def number_attribute(kind: int, number: int) -> bytes:
    """Return a 32-bit number as nf_tables wants it, big endian."""
    return attribute(kind, number.to_bytes(4, "big"))


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


class NetfilterSocket(Link):
    """nf_tables' netlink socket of the current netns."""

    def __init__(self, close: Close = socket.socket.close, *, explains: bool = True) -> None:
        """*explains*: answers carry a reason, and not all of the request."""
        super().__init__(NETLINK_NETFILTER, close)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK) if explains else ():
            self._socket.setsockopt(SOL_NETLINK, option, 1)

    def another(self) -> "NetfilterSocket":
        """Return one more socket, in the netns that the thread is in now."""
        return NetfilterSocket(self._close)

    def dump(
        self, kind: Kind, family: int = Proto.unspec, body: bytes = b"", most: int | None = MOST_NAMES
    ) -> list[Message]:
        """Return all that *kind* (``GET…``) finds, as of one moment; not more than *most* bytes of it.

        Raises:
            InterruptedDumpError: the tables changed during each of several attempts.
            TooMuchError: it is more; this socket is of no further use.
            NetlinkError: the kernel's own answer, such as ENOENT.
        """
        try:
            found = self.dump_frames(SUBSYSTEM << 8 | kind, _generic(family) + body, most)
        except TooMuchError as error:
            raise TooMuchError(errno.EFBIG, f"{kind.name}: {error.strerror}") from None
        return [_message(f.kind, f.payload) for f in found]

    def stream(self, kind: Kind, family: int, body: bytes) -> Iterator[Datagram]:
        """Yield what :meth:`dump` would return, unparsed, as it comes: nfgenmsg and the attributes of each message.

        Raises:
            InterruptedDumpError: the tables changed meanwhile.
            NetlinkError: the kernel's own answer, such as ENOENT.
        """
        return self.dump_datagrams(SUBSYSTEM << 8 | kind, _generic(family) + body)

    def get(self, kind: Kind, body: bytes = b"", family: int = Proto.inet) -> Message:
        """Return the one answer to *kind* (``GET…``); NetlinkError where there is none."""
        self.send(SUBSYSTEM << 8 | kind, NLM_F_REQUEST, _generic(family) + body)
        for received in frames(self._socket.recv(RECEIVE)):
            if received.kind == NLMSG_ERROR:
                failure = answer(received.payload, received.flags)
                raise failure or NetlinkError(errno.EBADMSG, "the kernel's reply is empty")
            return _message(received.kind, received.payload)
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
            yield from (answer(f.payload, f.flags) for f in frames(data) if f.kind == NLMSG_ERROR)


def parse(stream: bytes) -> list[Message]:
    """Return the messages that :func:`message` made, in order."""
    return [_message(found.kind, found.payload) for found in frames(stream)]


def generation_at(data: bytes, start: int) -> int:
    """Return the generation of the message whose payload starts there, as :class:`Message` has it.

    >>> generation_at(bytes((0, 0, 2, 0, 0, 0, 0x12, 0x34)), 4)
    4660
    """
    return data[start + 2] << 8 | data[start + 3]


def _generic(family: int) -> bytes:
    return _GENERIC.pack(family, 0, 0)  # nfgenmsg


def _message(code: int, payload: bytes) -> Message:
    return Message(code & 0xFF, payload[0], generation_at(payload, 0), payload[4:])
