"""The messages of counting, of watching and of hearing: see :mod:`nodeagent.programmer.wire`."""

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated

import msgspec

from nodeagent import errors
from nodeagent.model import CountedPod, FlowClass, FlowFlags, FlowKey, FlowKind, FlowOwner
from nodeagent.policy.grammar import HIGHEST_PORT
from nodeagent.programmer.seam import Choice, CountingSettings, Expected, Freed, SlotRef
from nodeagent.programmer.wire import TargetMessage


class ExpectedMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An :class:`~nodeagent.programmer.seam.Expected`."""

    target: TargetMessage
    ruleset_id: str
    proxy_port: int
    choice: Choice

    @classmethod
    def of(cls, pod: Expected) -> "ExpectedMessage":
        """Return the message for *pod*."""
        return cls(TargetMessage.of(pod.target), pod.ruleset_id, pod.proxy_port, pod.choice)

    def expected(self) -> Expected:
        """Return what the message says."""
        return Expected(self.target.target(), self.ruleset_id, self.proxy_port, self.choice)


class KeyMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A :class:`~nodeagent.model.FlowKey`, its address as text."""

    pod: int
    container: int
    destination: str
    port: int
    protocol: int
    ifindex: int
    epoch: int
    flow_class: FlowClass
    owner: int
    flags: int
    kind: FlowKind

    @classmethod
    def of(cls, key: FlowKey) -> "KeyMessage":
        """Return the message for *key*."""
        parts = (key.pod, key.container, str(key.destination), key.port, key.protocol, key.ifindex, key.epoch)
        return cls(*parts, key.flow_class, int(key.owner), int(key.flags), key.kind)

    def key(self) -> FlowKey:
        """Return the key.

        Raises:
            InputError: its address is none.
        """
        try:
            destination = ip_address(self.destination)
        except ValueError as error:
            raise errors.InputError(f"not a slot that the programmer knows: {error}") from None
        parts = (self.pod, self.container, destination, self.port, self.protocol, self.ifindex, self.epoch)
        return FlowKey(*parts, self.flow_class, FlowOwner(self.owner), FlowFlags(self.flags), self.kind)


class FreedMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A :class:`~nodeagent.programmer.seam.Freed`."""

    position: int
    generation: int
    into: KeyMessage | None

    @classmethod
    def of(cls, slot: Freed) -> "FreedMessage":
        """Return the message for *slot*."""
        return cls(slot.position, slot.generation, KeyMessage.of(slot.into) if slot.into else None)

    def freed(self) -> Freed:
        """Return what the message says."""
        return Freed(self.position, self.generation, self.into.key() if self.into else None)


class Recognise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="recognise"):
    """Ask what is to be known of pods that hold what they should; ``rulesets`` in canonical form, by their IDs."""

    pods: tuple[ExpectedMessage, ...]
    rulesets: dict[str, str]


class Sweep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="sweep"):
    """Ask which pods hold what they should."""

    pods: tuple[ExpectedMessage, ...]


class Watch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="watch"):
    """Ask for a netns's number."""

    target: TargetMessage


class Interfaces(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="interfaces"):
    """Ask for a netns's network devices."""

    target: TargetMessage


class Prepare(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="prepare"):
    """Ask to encode ahead; ``ruleset`` is in canonical form."""

    ruleset: str
    choice: Choice


class Tracked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tracked"):
    """Ask how full a netns's connection tracking is."""

    target: TargetMessage


class Listening(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="listening"):
    """Ask who listens at a port of a netns's loopback."""

    target: TargetMessage
    port: Annotated[int, msgspec.Meta(ge=1, le=HIGHEST_PORT)]


class Events(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="events"):
    """Ask for the descriptor of the socket that hears of changes."""


class Guard(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="guard"):
    """Ask to guard pods' wires."""

    targets: tuple[TargetMessage, ...]


class Unguard(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="unguard"):
    """Ask to guard them no longer."""

    targets: tuple[TargetMessage, ...]


class StartCounting(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="start_counting"):
    """Ask to count."""

    settings: CountingSettings


class Enrol(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="enrol"):
    """Ask to count a pod."""

    pod: CountedPod


class Enrolled(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="enrolled"):
    """Ask which pods are counted."""


class SetEpoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="set_epoch"):
    """Ask for another epoch."""

    pod: int
    epoch: int


class Forget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="forget"):
    """Ask to count a pod no longer."""

    pod: int


class Evict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="evict"):
    """Ask to retire slots."""

    slots: tuple[SlotRef, ...]


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="release"):
    """Ask to free retired slots."""

    slots: tuple[FreedMessage, ...]


class Slots(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="slots"):
    """Ask for the descriptor of the slot array."""


class CountingHealthMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="counting_health"):
    """Ask how the counting is."""


class StopCounting(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="stop_counting"):
    """Ask to remove the counting."""

    bpffs: str


class Runtime(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="runtime"):
    """Ask for a connection to the container runtime."""


@dataclass(frozen=True, slots=True)
class Handed:
    """The answer of verbs that hand over a descriptor, which follows behind the message."""

    descriptor: int


WatchingRequest = Recognise | Sweep | Watch | Interfaces | Prepare | Tracked | Listening | Events
GuardingRequest = Guard | Unguard
HearingRequest = Runtime
CountingRequest = (
    StartCounting
    | Enrol
    | Enrolled
    | SetEpoch
    | Forget
    | Evict
    | Release
    | Slots
    | CountingHealthMessage
    | StopCounting
)
