"""A programmer that holds its namespaces in memory: for dry runs and fast tests.

It keeps the same promises as the real one, and a test holds the two against each other.  A
namespace exists once it has been added; ``foreign`` redirects and ``addresses`` are what a
test says they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nodeagent.compile.listing import list_chains
from nodeagent.errors import InputError, KernelError, Refusal, RefusedError
from nodeagent.model import (
    Address,
    BackendName,
    KernelRule,
    KernelState,
    Program,
    Reading,
    RuleSet,
)
from nodeagent.netns.inhabited import PodNetns
from nodeagent.plan import make_plan
from nodeagent.programmer.seam import (
    Applied,
    Choice,
    Cleared,
    Expected,
    Guarded,
    GuardState,
    Observation,
    Recognised,
    Target,
    refusal,
)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace in memory, as a test or a dry run wants it."""

    addresses: frozenset[Address] = frozenset()
    foreign: tuple[str, ...] = ()
    intercepted: int = 0
    program: Program | None = None


class MemoryProgrammer:
    """A :class:`~nodeagent.programmer.seam.Programmer` without a kernel."""

    def __init__(self, namespaces: dict[str | int | PodNetns, Namespace] | None = None) -> None:
        self.namespaces = {} if namespaces is None else namespaces

    def backends(self) -> dict[BackendName, str | None]:
        """Both, always."""
        return dict.fromkeys(BackendName)

    def observe(self, target: Target, ruleset: RuleSet | None, choice: Choice) -> Observation:
        """See :meth:`Programmer.observe`."""
        namespace = self._prove(target)
        backend = _backend(choice, namespace)
        state = namespace.program.state if namespace.program else None
        plan = make_plan(_program(backend, ruleset), Reading(state), backend)
        name = namespace.program.ruleset_id if namespace.program else None
        return Observation(plan, None, name, namespace.foreign)

    def apply(self, target: Target, ruleset: RuleSet, choice: Choice) -> Applied:
        """See :meth:`Programmer.apply`."""
        found = self.observe(target, ruleset, choice)
        if found.foreign:
            raise refusal(target, found.foreign)
        program = _program(found.plan.backend, ruleset)
        self.namespaces[target.netns] = replace(self._prove(target), program=program)
        return Applied(found, self.observe(target, ruleset, choice).plan)

    def clear(self, target: Target, *, now: bool) -> Cleared:
        """See :meth:`Programmer.clear`."""
        namespace = self._prove(target)
        if namespace.intercepted and namespace.program and not now:
            return Cleared(removed=False, intercepted=namespace.intercepted)
        self.namespaces[target.netns] = replace(namespace, program=None)
        return Cleared(removed=True, intercepted=0)

    # -- watching -------------------------------------------------------------------------------

    def recognise(self, pods: Sequence[Expected], rulesets: Mapping[str, RuleSet]) -> list[Recognised | None]:  # noqa: ARG002  # what stands has its name
        """See :meth:`Watching.recognise`."""
        return [
            Recognised(pod.ruleset_id, program.backend, None, self.watch(pod.target), self.interfaces(pod.target))
            if holds and (program := self.namespaces[pod.target.netns].program)
            else None
            for pod, holds in zip(pods, self.sweep(pods), strict=True)
        ]

    def sweep(self, pods: Sequence[Expected]) -> list[bool]:
        """See :meth:`Watching.sweep`."""
        found = [self.namespaces.get(pod.target.netns, Namespace()) for pod in pods]
        return [
            bool(namespace.program and namespace.program.ruleset_id == pod.ruleset_id and not namespace.foreign)
            for namespace, pod in zip(found, pods, strict=True)
        ]

    def watch(self, target: Target) -> int:
        """See :meth:`Watching.watch`."""
        self._prove(target)
        return list(self.namespaces).index(target.netns)

    def prepare(self, ruleset: RuleSet, choice: Choice) -> None:
        """See :meth:`Watching.prepare`: here nothing takes long."""

    def interfaces(self, target: Target) -> dict[int, str]:
        """See :meth:`Watching.interfaces`."""
        self._prove(target)
        return {1: "lo", 2: "eth0"}

    def tracked(self, target: Target) -> tuple[int, int]:
        """See :meth:`Watching.tracked`."""
        return self._prove(target).intercepted, 0

    def listening(self, target: Target, port: int) -> list[int]:  # noqa: ARG002  # the seam's
        """See :meth:`Watching.listening`: nobody does, in memory."""
        self._prove(target)
        return []

    def events(self) -> int:
        """Refuse: nothing changes here but by our own verbs."""
        raise KernelError("memory tells of no changes")

    # -- guarding -------------------------------------------------------------------------------

    def guard(self, targets: Sequence[Target]) -> list[Guarded]:
        """See :meth:`Guarding.guard`."""
        return [Guarded(GuardState.UNAVAILABLE, "memory has no wires")] * len(targets)

    def unguard(self, targets: Sequence[Target]) -> None:
        """See :meth:`Guarding.unguard`."""

    def _prove(self, target: Target) -> Namespace:
        namespace = self.namespaces.get(target.netns)
        if namespace is None:
            message = f"cannot open network namespace {target.netns}: there is none of that name"
            raise InputError(message)
        missing = set(target.addresses) - namespace.addresses
        if missing:
            message = f"{target.netns} has no address {', '.join(sorted(map(str, missing)))}"
            raise RefusedError(message, Refusal.MISSING_ADDRESS)
        return namespace


def _backend(choice: Choice, namespace: Namespace) -> BackendName:
    if choice is not Choice.AUTO:
        return BackendName(choice.value)
    return namespace.program.backend if namespace.program else BackendName.NFT


def _program(backend: BackendName, ruleset: RuleSet | None) -> Program | None:
    if ruleset is None:
        return None
    chains = {
        name: tuple(KernelRule(text.encode(), text) for text in texts)
        for name, texts in list_chains(ruleset, backend).items()
    }
    return Program(ruleset.id, backend, KernelState(backend, chains), b"")
