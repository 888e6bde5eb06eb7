"""What a list and a watch say, read: a table of event types, and what each is about.

Promises: every line becomes a :class:`Heard` or an error of :mod:`nodeagent.kube.client`; a Pod that
cannot be read becomes one that says so, and stops nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from nodeagent.errors import printable
from nodeagent.kube.client import Status, UnavailableError, error_of
from nodeagent.kube.pods import PodError, read_pod
from nodeagent.model import PodKey, PodManifest
from nodeagent.policy import Keys

_LIST_ENDS = "k8s.io/initial-events-end"


class Kind(StrEnum):
    """What happened.  A list's items were added; ``OTHER`` is what a later server may send."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    ERROR = "ERROR"
    OTHER = ""


@dataclass(frozen=True, slots=True)
class Heard:
    """One thing that the server said.

    ``key`` is None in what is about no pod.  ``pod`` is None in bookmarks, and where ``problem`` says why it cannot
    be read.  ``ends_list`` marks the bookmark after the last object of a list that came as a stream.
    """

    kind: Kind
    version: str
    key: PodKey | None = None
    pod: PodManifest | None = None
    problem: str = ""
    ends_list: bool = False


class _Marks(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    annotations: dict[str, str] | None = None


class _Bookmark(msgspec.Struct, frozen=True):
    metadata: _Marks


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _List(msgspec.Struct, frozen=True):
    metadata: _Marks
    items: list[msgspec.Raw] | None = None


_KINDS = frozenset(Kind)
_EVENT = msgspec.json.Decoder(_Event)
_BOOKMARK = msgspec.json.Decoder(_Bookmark)
_STATUS = msgspec.json.Decoder(Status)
_LIST = msgspec.json.Decoder(_List)


def read_event(line: bytes, keys: Keys) -> Heard:
    """Return what one line of a watch says.

    Raises:
        UnavailableError: it is no event.
        NodeagentError: it is the server's last word; as :func:`~nodeagent.kube.client.error_of`.
    """
    try:
        event = _EVENT.decode(line)
        kind = Kind(event.type) if event.type in _KINDS else Kind.OTHER
        if kind is Kind.ERROR:
            raise error_of(_STATUS.decode(event.object))
        if kind is Kind.BOOKMARK:
            marks = _BOOKMARK.decode(event.object).metadata
            ends_list = (marks.annotations or {}).get(_LIST_ENDS) == "true"
            return Heard(kind, marks.resource_version, ends_list=ends_list)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnavailableError(f"the API server sent no event: {printable(str(error))}") from None
    return Heard(kind, "") if kind is Kind.OTHER else _about_pod(kind, event.object, keys)


def read_list(answer: bytes, keys: Keys) -> tuple[str, Iterator[Heard]]:
    """Return the version of a list, and its pods.

    Raises:
        UnavailableError: it is no list.
    """
    try:
        found = _LIST.decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnavailableError(f"the API server sent no list: {printable(str(error))}") from None
    return found.metadata.resource_version, (_about_pod(Kind.ADDED, item, keys) for item in found.items or ())


def _about_pod(kind: Kind, raw: msgspec.Raw, keys: Keys) -> Heard:
    try:
        found = read_pod(raw, keys)
    except PodError as error:
        return Heard(kind, error.version, error.key, problem=str(error))
    return Heard(kind, found.version, found.key, found.manifest)
