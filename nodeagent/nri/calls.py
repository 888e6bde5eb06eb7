"""What a runtime asks of a plugin, in either generation of the protocol, into data.  Pure.

Before NRI 0.12 most events come as ``StateChange`` with a number; since then each has a method of
its own, and ``StateChange`` is what such a runtime falls back to where a plugin answers that it
does not know the method.  We know both.

Promises: any method with any payload becomes one of :data:`Asked`, or a
:class:`~nodeagent.nri.frames.ProtocolError`.  A pod that cannot be read becomes a
:class:`Refused`, never half a pod.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from nodeagent.errors import InputError
from nodeagent.nri import messages
from nodeagent.nri.frames import ProtocolError
from nodeagent.nri.pods import KEYS, Container, Sandbox, read_container, read_sandbox

M = TypeVar("M", bound=Message)
R = TypeVar("R")
S = TypeVar("S", bound=Sized)

MOST = 10_000
"""Pods, or containers, that a node is believed to have."""


class Call(StrEnum):
    """The methods that reach the handler."""

    SYNCHRONIZE = "Synchronize"
    RUN_SANDBOX = "RunPodSandbox"
    STOP_SANDBOX = "StopPodSandbox"
    REMOVE_SANDBOX = "RemovePodSandbox"
    START_CONTAINER = "StartContainer"
    REMOVE_CONTAINER = "RemoveContainer"


EVENTS: Mapping[int, Call] = {
    1: Call.RUN_SANDBOX,
    2: Call.STOP_SANDBOX,
    3: Call.REMOVE_SANDBOX,
    6: Call.START_CONTAINER,
    11: Call.REMOVE_CONTAINER,
}
"""NRI's numbers of the events that we subscribe to."""

SUBSCRIPTION = sum(1 << (number - 1) for number in EVENTS)

OTHERS = frozenset(
    {
        "CreateContainer",
        "PostCreateContainer",
        "PostStartContainer",
        "PostUpdateContainer",
        "PostUpdatePodSandbox",
        "Shutdown",
        "StopContainer",
        "UpdateContainer",
        "UpdatePodSandbox",
        "ValidateContainerAdjustment",
    }
)
"""Methods that we do not subscribe to.  Their empty answer means "no objection"; an error would stop a pod."""

_OF_CONTAINERS = {Call.START_CONTAINER, Call.REMOVE_CONTAINER}


@dataclass(frozen=True, slots=True)
class Configure:
    """The runtime introduces itself; ``nri`` is empty before NRI 0.12."""

    runtime: str
    version: str
    nri: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """What runs already, or with ``more`` a part of it; ``refused`` says what could not be read."""

    sandboxes: tuple[Sandbox, ...] = ()
    containers: tuple[Container, ...] = ()
    refused: tuple[InputError, ...] = ()
    more: bool = False

    def __add__(self, other: "Inventory") -> "Inventory":
        """Return both parts as one, which is as complete as *other*.

        Raises:
            ProtocolError: there is no such node.
        """
        return Inventory(
            _bounded(self.sandboxes + other.sandboxes),
            _bounded(self.containers + other.containers),
            (self.refused + other.refused)[:MOST],
            other.more,
        )


@dataclass(frozen=True, slots=True)
class SandboxEvent:
    """Something happens to a pod."""

    call: Call
    sandbox: Sandbox


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """Something happens to a container of a pod."""

    call: Call
    sandbox: Sandbox
    container: Container


@dataclass(frozen=True, slots=True)
class Refused:
    """An event of a pod that could not be read."""

    call: Call
    error: InputError


class Other(StrEnum):
    """A method that has nothing to do with us, or that nobody knows."""

    KNOWN = "known"
    UNKNOWN = "unknown"


Event: TypeAlias = SandboxEvent | ContainerEvent | Refused
Asked: TypeAlias = Configure | Inventory | Event | Other


def parse(kind: type[M], data: bytes) -> M:
    """Return the message of that *kind* in *data*.

    Raises:
        ProtocolError: there is none.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        raise ProtocolError(f"{len(data)} bytes that are no {kind.DESCRIPTOR.name}") from None


def read_call(method: str, payload: bytes, keys: frozenset[str] = KEYS) -> Asked:
    """Return what a request for *method* asks; of pods' annotations, *keys* are kept.

    Raises:
        ProtocolError: *payload* does not belong to *method*.
    """
    if method == "Configure":
        given = parse(messages.ConfigureRequest, payload)
        return Configure(given.runtime_name, given.runtime_version, given.NRI_version)
    if method == Call.SYNCHRONIZE:
        return _inventory(parse(messages.SynchronizeRequest, payload), keys)
    if method == "StateChange":
        change = parse(messages.StateChangeEvent, payload)
        return _event(EVENTS[change.event], change, keys) if change.event in EVENTS else Other.KNOWN
    if method in EVENTS.values():
        return _event(Call(method), parse(messages.EventRequest, payload), keys)
    return Other.KNOWN if method in OTHERS else Other.UNKNOWN


def _event(call: Call, given: messages.StateChangeEvent | messages.EventRequest, keys: frozenset[str]) -> Event:
    try:
        sandbox = read_sandbox(given.pod, keys)
        if call in _OF_CONTAINERS:
            return ContainerEvent(call, sandbox, read_container(given.container))
    except InputError as error:
        return Refused(call, error)
    return SandboxEvent(call, sandbox)


def _inventory(given: messages.SynchronizeRequest, keys: frozenset[str]) -> Inventory:
    refused: list[InputError] = []
    return Inventory(
        tuple(_each(messages.PodSandbox, given.pods, partial(read_sandbox, keys=keys), refused)),
        tuple(_each(messages.Container, given.containers, read_container, refused)),
        tuple(refused),
        given.more,
    )


def _each(kind: type[M], given: Sequence[bytes], read: Callable[[M], R], refused: list[InputError]) -> Iterator[R]:
    """Yield what can be read of *given*; add to *refused* what cannot."""
    for raw in _bounded(given):
        try:
            yield read(parse(kind, raw))
        except InputError as error:
            refused.append(error)


def _bounded(items: S) -> S:
    if len(items) > MOST:
        raise ProtocolError(f"{len(items)} pods or containers: no more than {MOST} of each are believed")
    return items
