"""The structures that programs and user space share: ``bpf/*.h``, field by field.

``tests/unit/test_bpf_layout.py`` holds this file and the headers together, by letting the compiler
compare them.
"""

import ctypes
import json
from ctypes import Structure, c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum
from typing import Any, Final

LAYOUT: Final = 1
SLOTS: Final = 16384
PODS: Final = 1024
CLASSES: Final = 4
RESERVED: Final = PODS * CLASSES
LEVELS: Final = 6
LEGS: Final = 4
QUESTION_AT: Final = 14
FILLED: Final = 512


class MapNumber(IntEnum):
    """By what number a program names a map."""

    CONFIG = 1
    PODS = 2
    SIDECARS = 3
    OWNERS = 4
    SOCKETS = 5
    SLOTS = 6
    INDEX = 7
    FREE = 8
    TALLIES = 9
    CARRIED = 10


class Tally(IntEnum):
    """What the programs count about themselves."""

    OVERFLOW = 0
    BUSY = 1
    NO_STATE = 2
    LOST = 3
    UNREADABLE = 4
    UNSEEN = 5
    ENTRIES = 6
    RETURNED = 7


TALLIES: Final = len(Tally)


class OwnerKind(IntEnum):
    """What the ID in a :class:`FlowOwnerKey` is."""

    UID = 1
    GID = 2


class Answer(IntEnum):
    """What ``upkeep.c`` says."""

    DONE = 0
    DONE_BEFORE = 1
    TAKEN = 2
    NO_ROOM = 3
    NOT_UNDERSTOOD = 4


class KeyLayout(Structure):
    """``struct flow_key``."""

    _fields_ = (
        ("pod", c_uint64),
        ("container", c_uint64),
        ("address", c_uint32 * 4),
        ("ifindex", c_uint32),
        ("epoch", c_uint32),
        ("port", c_uint16),
        ("protocol", c_uint8),
        ("family", c_uint8),
        ("class", c_uint8),
        ("owner", c_uint8),
        ("flags", c_uint8),
        ("kind", c_uint8),
    )


class CountersLayout(Structure):
    """``struct flow_counters``."""

    _fields_ = (
        ("connections", c_uint64),
        ("packets", c_uint64),
        ("segments", c_uint64),
        ("bytes", c_uint64),
        ("payload", c_uint64),
        ("received_packets", c_uint64),
        ("received_bytes", c_uint64),
    )


class SlotLayout(Structure):
    """``struct flow_slot``."""

    _fields_ = (
        ("generation", c_uint32),
        ("state", c_uint32),
        ("key", KeyLayout),
        ("counters", CountersLayout),
    )


class ConfigLayout(Structure):
    """``struct config``."""

    _fields_ = (("roster", c_uint32), ("unused", c_uint32), ("levels", c_uint32 * LEVELS))


class PodLayout(Structure):
    """``struct pod``; ports in network order."""

    _fields_ = (
        ("number", c_uint32),
        ("epoch", c_uint32),
        ("tproxy_mark", c_uint32),
        ("proxy_port", c_uint16),
        ("dns_port", c_uint16),
    )


class OwnerLayout(Structure):
    """``struct owner``."""

    _fields_ = (("pod", c_uint64), ("id", c_uint32), ("kind", c_uint32))


class LegLayout(Structure):
    """``struct leg``."""

    _fields_ = (("key", KeyLayout), ("slot", c_uint32), ("generation", c_uint32))


class SocketLayout(Structure):
    """``struct socket_state``, which user space never reads."""

    _fields_ = (
        ("legs", LegLayout * LEGS),
        ("pod", c_uint64),
        ("container", c_uint64),
        ("netns", c_uint64),
        ("roster", c_uint32),
        ("gid", c_uint32),
        ("dialled", c_uint32 * 4),
        ("wire", c_uint32 * 4),
        ("wire_ifindex", c_uint32),
        ("sequence", c_uint32),
        ("dialled_port", c_uint16),
        ("wire_port", c_uint16),
        ("wire_family", c_uint8),
        ("direction", c_uint8),
        ("born", c_uint8),
        ("spoke", c_uint8),
        ("next_leg", c_uint32),
        ("unused", c_uint32),
    )


class QuestionLayout(Structure):
    """``struct question``."""

    _fields_ = (("position", c_uint32), ("generation", c_uint32), ("slot", SlotLayout))


def fields(structure: type[Structure], prefix: str = "", base: int = 0) -> dict[str, tuple[int, int]]:
    """Return offset and size of each field, those of nested structures as ``key.pod``.

    >>> fields(PodLayout)["proxy_port"]
    (12, 2)
    """
    found: dict[str, tuple[int, int]] = {}
    for name, kind in structure._fields_:  # type: ignore[misc]  # ours have no bit fields
        offset = base + getattr(structure, name).offset
        if isinstance(kind, type) and issubclass(kind, Structure):
            found |= fields(kind, f"{prefix}{name}.", offset)
        else:
            found[prefix + name] = offset, ctypes.sizeof(kind)
    return found


def description() -> dict[str, Any]:
    """Return the layout in a form that other versions of this program can read.

    A generation of maps carries it, so that the next one, newer or older, can take its counters over.
    """
    return {
        "layout": LAYOUT,
        "slot": {"size": ctypes.sizeof(SlotLayout), "fields": fields(SlotLayout)},
        "question": {"size": ctypes.sizeof(QuestionLayout), "fields": fields(QuestionLayout)},
        "socket": {"size": ctypes.sizeof(SocketLayout), "fields": fields(SocketLayout)},
        "config": {"pods": fields(PodLayout), "owners": fields(OwnerLayout), "config": fields(ConfigLayout)},
        "sizes": {"slots": SLOTS, "reserved": RESERVED},
    }


def encoded_description() -> bytes:
    """Return :func:`description` as JSON, the same for the same layout."""
    return json.dumps(description(), sort_keys=True, separators=(",", ":")).encode()
