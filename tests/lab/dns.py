"""Just enough DNS for a resolver to know who answered it: every name has one A record, the peer's mark."""

import ipaddress
import struct

_HEADER = struct.Struct(">6H")
_RESPONSE, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x0100, 0x0080  # RFC 1035, 4.1.1
_A, _IN = 1, 1
_NAME_OF_THE_QUESTION = 0xC00C  # a pointer to offset 12, RFC 1035, 4.1.4

MARKS = {"sidecar": "192.0.2.53", "world": "192.0.2.80", "app-local": "192.0.2.127"}
"""The address that each peer gives for every name."""


def query(name: str, identity: int = 1) -> bytes:
    r"""Return a query for the A records of *name*.

    >>> question(query("a.example"))
    b'\x01a\x07example\x00\x00\x01\x00\x01'
    """
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return _HEADER.pack(identity, _RECURSION_DESIRED, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, _A, _IN)


def question(message: bytes) -> bytes:
    """Return the first question of *message*: name, type and class."""
    end = _HEADER.size
    while message[end]:
        end += 1 + message[end]
    return message[_HEADER.size : end + 5]


def answer(message: bytes, who: str) -> bytes | None:
    """Return the answer of *who* to *message*, with no record unless it asks for A; None if it is not a query."""
    try:
        identity, flags, questions, *_ = _HEADER.unpack_from(message)
        asked = question(message)
        kind, _ = struct.unpack_from(">HH", asked, len(asked) - 4)
    except (struct.error, IndexError):
        return None
    if flags & _RESPONSE or questions != 1:
        return None
    records = b""
    if kind == _A:
        records = struct.pack(">3HIH", _NAME_OF_THE_QUESTION, _A, _IN, 0, 4) + ipaddress.IPv4Address(MARKS[who]).packed
    flags = _RESPONSE | _RECURSION_AVAILABLE | (flags & _RECURSION_DESIRED)
    return _HEADER.pack(identity, flags, 1, bool(records), 0, 0) + asked + records


def address_in(reply: bytes) -> str:
    """Return the address in a reply made by `answer` to an A query."""
    return str(ipaddress.IPv4Address(reply[-4:]))
