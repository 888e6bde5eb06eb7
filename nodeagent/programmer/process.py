"""The programmer in a child process, and the client that speaks to it.

The child moves into an empty network namespace before it reads its first request, and ends
when its socket closes.  The parent never calls ``setns``.
"""

import socket
import subprocess
import sys
from collections.abc import Sequence
from types import NoneType, TracebackType
from typing import Self, TypeVar

import msgspec

from nodeagent.compile.canonical import to_json
from nodeagent.errors import NodeagentError, UnreachableError
from nodeagent.log import Logging
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
    SlotRef,
    Target,
)
from nodeagent.programmer.serving import Request

R = TypeVar("R")

_MODULE = "nodeagent.programmer.child"
_CACHED_TEXTS = 256


class ChildProgrammer:
    """A :class:`~nodeagent.programmer.seam.Programmer` in a child; a context manager.

    Raises:
        KernelError: on entering the context, if this process lacks the privilege.
    """

    def __init__(self, logging: Logging = Logging()) -> None:  # noqa: B008  # frozen
        self._texts: dict[str, str] = {}
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(  # our own interpreter and module
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), logging.level, logging.style],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the parent: its end is the child's
            )

    def __enter__(self) -> Self:
        """Wait until the child has settled in its namespace."""
        try:
            self._answer(dict[str, bool])
        except NodeagentError:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the child."""
        self.close()

    @property
    def pid(self) -> int:
        """Process ID of the child."""
        return self._child.pid

    def close(self) -> None:
        """End the child and wait for it."""
        self._socket.close()
        self._child.wait()

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

    def sweep(self, pods: Sequence[Expected]) -> list[bool]:
        """See :meth:`Watching.sweep`."""
        return self._ask(more.Sweep(tuple(map(more.ExpectedMessage.of, pods))), list[bool])

    def watch(self, target: Target) -> int:
        """See :meth:`Watching.watch`."""
        return self._ask(more.Watch(wire.TargetMessage.of(target)), int)

    def interfaces(self, target: Target) -> dict[int, str]:
        """See :meth:`Watching.interfaces`."""
        return self._ask(more.Interfaces(wire.TargetMessage.of(target)), dict[int, str])

    def tracked(self, target: Target) -> tuple[int, int]:
        """See :meth:`Watching.tracked`."""
        return self._ask(more.Tracked(wire.TargetMessage.of(target)), tuple[int, int])

    def events(self) -> int:
        """See :meth:`Watching.events`."""
        self._ask(more.Events(), Handed)
        return wire.receive_descriptor(self._socket)

    # -- guarding -------------------------------------------------------------------------------

    def guard(self, targets: Sequence[Target]) -> list[Guarded]:
        """See :meth:`Guarding.guard`."""
        return self._ask(more.Guard(tuple(map(wire.TargetMessage.of, targets))), list[Guarded])

    def unguard(self, targets: Sequence[Target]) -> None:
        """See :meth:`Guarding.unguard`."""
        self._ask(more.Unguard(tuple(map(wire.TargetMessage.of, targets))), NoneType)

    # -- counting -------------------------------------------------------------------------------

    def start_counting(self, settings: CountingSettings) -> None:
        """See :meth:`Counting.start_counting`."""
        self._ask(more.StartCounting(settings), NoneType)

    def enrol(self, pod: CountedPod) -> None:
        """See :meth:`Counting.enrol`."""
        self._ask(more.Enrol(pod), NoneType)

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
        self._ask(more.Slots(), Handed)
        return wire.receive_descriptor(self._socket)

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
        except OSError as error:
            raise UnreachableError(_ended(str(error))) from None
        if data is None:
            raise UnreachableError(_ended("no answer"))
        answer = msgspec.json.decode(data, type=wire.Success | wire.Failure)
        if isinstance(answer, wire.Failure):
            wire.raise_failure(answer)
        return msgspec.json.decode(answer.result, type=kind)


def _ended(why: str) -> str:
    return f"the programmer process ended: {why}; what it was doing is unknown, try again"
