"""From a request that came over the seam to the verb that answers it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from nodeagent.model import CountedPod, RuleSet
from nodeagent.programmer import counting_wire as more
from nodeagent.programmer import wire
from nodeagent.programmer.counting_wire import Handed
from nodeagent.programmer.hearing import NotHearing
from nodeagent.programmer.seam import (
    Counting,
    CountingHealth,
    Guarded,
    Guarding,
    Hearing,
    Programmer,
    Recognised,
    Watching,
)

Request: TypeAlias = (
    wire.Request | more.WatchingRequest | more.GuardingRequest | more.HearingRequest | more.CountingRequest
)
Result: TypeAlias = (
    wire.Result
    | list[Recognised | None]
    | list[bool]
    | dict[int, str]
    | tuple[int, int]
    | list[int]
    | int
    | Handed
    | list[CountedPod]
    | CountingHealth
    | list[Guarded]
    | None
)


class _Programs(Programmer, Watching, Protocol):
    """Programs pods, and looks after them."""


@dataclass(frozen=True, slots=True)
class Served:
    """Whose verbs are served; *hearing* where the agent may not open the container runtime's socket itself."""

    programmer: _Programs
    counting: Counting
    guarding: Guarding
    hearing: Hearing = NotHearing()  # noqa: RUF009  # keeps nothing


def answer(served: Served, request: Request, load: Callable[[str], RuleSet]) -> Result:
    """Return what the verb of *request* returns; *load* reads a rule set's canonical form."""
    match request:
        case wire.Observe() | wire.Apply() | wire.Clear() | wire.Backends():
            return _program(served.programmer, request, load)
        case more.Recognise():
            rulesets = {name: load(text) for name, text in request.rulesets.items()}
            return served.programmer.recognise([pod.expected() for pod in request.pods], rulesets)
        case more.Sweep() | more.Watch() | more.Interfaces() | more.Tracked() | more.Listening() | more.Events():
            return _watch(served.programmer, request)
        case more.Guard() | more.Unguard() | more.Runtime():
            return _attend(served, request)
        case more.Prepare():
            served.programmer.prepare(load(request.ruleset), request.choice)
        case _:
            return _count(served.counting, request)
    return None


def _program(programmer: Programmer, request: wire.Request, load: Callable[[str], RuleSet]) -> Result:
    match request:
        case wire.Observe():
            ruleset = load(request.ruleset) if request.ruleset else None
            return programmer.observe(request.target.target(), ruleset, request.choice)
        case wire.Apply():
            return programmer.apply(request.target.target(), load(request.ruleset), request.choice)
        case wire.Clear():
            return programmer.clear(request.target.target(), now=request.now)
        case wire.Backends():
            return programmer.backends()


def _watch(
    programmer: Watching,
    request: more.Sweep | more.Watch | more.Interfaces | more.Tracked | more.Listening | more.Events,
) -> Result:
    match request:
        case more.Sweep():
            return programmer.sweep([pod.expected() for pod in request.pods])
        case more.Watch():
            return programmer.watch(request.target.target())
        case more.Interfaces():
            return programmer.interfaces(request.target.target())
        case more.Tracked():
            return programmer.tracked(request.target.target())
        case more.Listening():
            return programmer.listening(request.target.target(), request.port)
        case more.Events():
            return Handed(programmer.events())


def _attend(served: Served, request: more.GuardingRequest | more.HearingRequest) -> list[Guarded] | Handed | None:
    if isinstance(request, more.Runtime):
        return Handed(served.hearing.runtime())
    targets = [target.target() for target in request.targets]
    if isinstance(request, more.Guard):
        return served.guarding.guard(targets)
    served.guarding.unguard(targets)
    return None


def _count(counting: Counting, request: more.CountingRequest) -> Result:
    match request:
        case more.Slots():
            return Handed(counting.slots())
        case more.CountingHealthMessage():
            return counting.counting_health()
        case more.Enrolled():
            return counting.enrolled()
        case more.StartCounting():
            counting.start_counting(request.settings)
        case more.StopCounting():
            counting.stop_counting(request.bpffs)
        case more.Evict():
            counting.evict(request.slots)
        case more.Release():
            counting.release([slot.freed() for slot in request.slots])
        case _:
            _change(counting, request)
    return None


def _change(counting: Counting, request: more.Enrol | more.SetEpoch | more.Forget) -> None:
    match request:
        case more.Enrol():
            counting.enrol(request.pod)
        case more.SetEpoch():
            counting.set_epoch(request.pod, request.epoch)
        case more.Forget():
            counting.forget(request.pod)
