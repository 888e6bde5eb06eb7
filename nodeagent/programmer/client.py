"""The agent's side of the seam: each verb is a message, and its answer another one.

Whoever is on the other side (:mod:`nodeagent.programmer.process`, :mod:`nodeagent.programmer.connection`), what is
not understood ends in an :class:`~nodeagent.errors.UnreachableError`: what was done is unknown then.
"""

import socket
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import TypeVar

import msgspec

from nodeagent.compile.canonical import to_json
from nodeagent.errors import UnreachableError
from nodeagent.model import BackendName, CountedPod, RuleSet
from nodeagent.programmer import counting_wire as more
from nodeagent.programmer import wire
from nodeagent.programmer.counting_wire import Handed
from nodeagent.programmer.seam import (
    Applied,
    Choice,
    Cleared,
    CountingHealth,
    CountingSettings,
    Expected,
    Freed,
    Guarded,
    Observation,
    Recognised,
    SlotRef,
    Target,
)
from nodeagent.programmer.serving import Request

R = TypeVar("R")

_CACHED_TEXTS = 256


class SeamClient:
    """All verbs of :mod:`nodeagent.programmer.seam`, asked over a socket that is this object's from then on."""

    def __init__(self, sock: socket.socket) -> None:
        self._texts: dict[str, str] = {}
        self._socket = sock

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def observe(self, target: Target, ruleset: RuleSet | None, choice: Choice) -> Observation:
        """See :meth:`Programmer.observe`."""
        text = self._text(ruleset) if ruleset else None
        return self._ask(wire.Observe(wire.TargetMessage.of(target), text, choice), Observation)

    def apply(self, target: Target, ruleset: RuleSet, choice: Choice) -> Applied:
        """See :meth:`Programmer.apply`."""
        request = wire.Apply(wire.TargetMessage.of(target), self._text(ruleset), choice)
        return self._ask(request, Applied)

    def clear(self, target: Target, *, now: bool) -> Cleared:
        """See :meth:`Programmer.clear`."""
        return self._ask(wire.Clear(wire.TargetMessage.of(target), now), Cleared)

    def backends(self) -> dict[BackendName, str | None]:
        """See :meth:`Programmer.backends`."""
        return self._ask(wire.Backends(), dict[BackendName, str | None])

    # -- watching -------------------------------------------------------------------------------

    def recognise(self, pods: Sequence[Expected], rulesets: Mapping[str, RuleSet]) -> list[Recognised | None]:
        """See :meth:`Watching.recognise`."""
        texts = {name: self._text(ruleset) for name, ruleset in rulesets.items()}
        return self._ask(more.Recognise(tuple(map(more.ExpectedMessage.of, pods)), texts), list[Recognised | None])

    def sweep(self, pods: Sequence[Expected]) -> list[bool]:
        """See :meth:`Watching.sweep`."""
        return self._ask(more.Sweep(tuple(map(more.ExpectedMessage.of, pods))), list[bool])

    def watch(self, target: Target) -> int:
        """See :meth:`Watching.watch`."""
        return self._ask(more.Watch(wire.TargetMessage.of(target)), int)

    def interfaces(self, target: Target) -> dict[int, str]:
        """See :meth:`Watching.interfaces`."""
        return self._ask(more.Interfaces(wire.TargetMessage.of(target)), dict[int, str])

    def prepare(self, ruleset: RuleSet, choice: Choice) -> None:
        """See :meth:`Watching.prepare`."""
        self._ask(more.Prepare(self._text(ruleset), choice), NoneType)

    def tracked(self, target: Target) -> tuple[int, int]:
        """See :meth:`Watching.tracked`."""
        return self._ask(more.Tracked(wire.TargetMessage.of(target)), tuple[int, int])

    def listening(self, target: Target, port: int) -> list[int]:
        """See :meth:`Watching.listening`."""
        return self._ask(more.Listening(wire.TargetMessage.of(target), port), list[int])

    def events(self) -> int:
        """See :meth:`Watching.events`."""
        return self._handed(more.Events())

    # -- guarding -------------------------------------------------------------------------------

    def guard(self, targets: Sequence[Target]) -> list[Guarded]:
        """See :meth:`Guarding.guard`."""
        return self._ask(more.Guard(tuple(map(wire.TargetMessage.of, targets))), list[Guarded])

    def unguard(self, targets: Sequence[Target]) -> None:
        """See :meth:`Guarding.unguard`."""
        self._ask(more.Unguard(tuple(map(wire.TargetMessage.of, targets))), NoneType)

    # -- hearing --------------------------------------------------------------------------------

    def runtime(self) -> int:
        """See :meth:`Hearing.runtime`."""
        return self._handed(more.Runtime())

    # -- counting -------------------------------------------------------------------------------

    def start_counting(self, settings: CountingSettings) -> None:
        """See :meth:`Counting.start_counting`."""
        self._ask(more.StartCounting(settings), NoneType)

    def enrol(self, pod: CountedPod) -> None:
        """See :meth:`Counting.enrol`."""
        self._ask(more.Enrol(pod), NoneType)

    def enrolled(self) -> list[CountedPod]:
        """See :meth:`Counting.enrolled`."""
        return self._ask(more.Enrolled(), list[CountedPod])

    def set_epoch(self, pod: int, epoch: int) -> None:
        """See :meth:`Counting.set_epoch`."""
        self._ask(more.SetEpoch(pod, epoch), NoneType)

    def forget(self, pod: int) -> None:
        """See :meth:`Counting.forget`."""
        self._ask(more.Forget(pod), NoneType)

    def evict(self, slots: Sequence[SlotRef]) -> None:
        """See :meth:`Counting.evict`."""
        self._ask(more.Evict(tuple(slots)), NoneType)

    def release(self, slots: Sequence[Freed]) -> None:
        """See :meth:`Counting.release`."""
        self._ask(more.Release(tuple(map(more.FreedMessage.of, slots))), NoneType)

    def slots(self) -> int:
        """See :meth:`Counting.slots`."""
        return self._handed(more.Slots())

    def counting_health(self) -> CountingHealth:
        """See :meth:`Counting.counting_health`."""
        return self._ask(more.CountingHealthMessage(), CountingHealth)

    def stop_counting(self, bpffs: str) -> None:
        """See :meth:`Counting.stop_counting`."""
        self._ask(more.StopCounting(bpffs), NoneType)

    def _text(self, ruleset: RuleSet) -> str:
        """Return the canonical form; cached, because most pods of a node share theirs."""
        if ruleset.id not in self._texts:
            if len(self._texts) >= _CACHED_TEXTS:
                self._texts.clear()
            self._texts[ruleset.id] = to_json(ruleset).decode()
        return self._texts[ruleset.id]

    def _ask(self, request: Request, kind: type[R]) -> R:
        try:
            wire.send(self._socket, request)
        except OSError as error:
            raise UnreachableError(_ended(str(error))) from None
        return self._answer(kind)

    def _answer(self, kind: type[R]) -> R:
        try:
            data = wire.receive(self._socket)
            if data is None:
                raise UnreachableError(_ended("no answer"))
            answer = msgspec.json.decode(data, type=wire.Success | wire.Failure)
            if isinstance(answer, wire.Success):
                return msgspec.json.decode(answer.result, type=kind)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UnreachableError(_ended(str(error))) from None
        raise wire.error_of(answer)

    def _handed(self, request: Request) -> int:
        self._ask(request, Handed)
        try:
            return wire.receive_descriptor(self._socket)
        except OSError as error:
            raise UnreachableError(_ended(str(error))) from None


def _ended(why: str) -> str:
    return f"the programmer process ended: {why}; what it was doing is unknown, try again"
