"""The seam between the agent, which needs no privilege, and the programmer, which has it.

A handful of verbs over frozen data: :class:`Programmer` writes rules, :class:`Watching` looks at many
pods at once and hears of changes, :class:`Counting` counts.  Each has an implementation in a child
process (:mod:`nodeagent.programmer.process`), and one in memory; the socket between two
containers speaks the same verbs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol, TypeAlias

from nodeagent.errors import Refusal, RefusedError
from nodeagent.model import Address, BackendName, CountedPod, FlowKey, Plan, RuleSet
from nodeagent.netns.inhabited import PodNetns

_NAMED: Final = 6


class Choice(StrEnum):
    """Which backend to use; ``auto`` goes by what is there in the netns."""

    AUTO = "auto"
    NFT = "nft"
    LEGACY = "legacy"


@dataclass(frozen=True, slots=True)
class Target:
    """A network namespace, and what must be true of it before anything is written.

    ``netns`` is a path (``/proc/123/ns/net``, ``/run/netns/pod``), a PID, or where a pod's
    processes live; ``addresses`` must all be configured inside.  ``cookie`` is the kernel's own
    name of the netns, where it was seen before and must be the same.
    """

    netns: str | int | PodNetns
    addresses: tuple[Address, ...] = ()
    cookie: int | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What was read back from a netns: the plan towards a rule set, and what else is there.

    ``cookie`` is the kernel's own name of the netns (None before Linux 5.14).  ``ruleset_id``
    is what our rules there say they are.  ``foreign`` names what was seen of other proxies:
    where there is any, the pod is *observed*.
    """

    plan: Plan
    cookie: int | None = None
    ruleset_id: str | None = None
    foreign: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """What an apply found, and so changed, and what it could not mend.

    ``remaining`` holds strangers' rules that run ahead of ours and that we cannot overtake,
    read back after the write.
    """

    found: Observation
    remaining: Plan


@dataclass(frozen=True, slots=True)
class Cleared:
    """What a clear did: ``intercepted`` connections are still open if it is not zero.

    Then new ones already go direct, and the tracking rule stands until the old ones end;
    another clear finishes the job.
    """

    removed: bool
    intercepted: int


def refusal(target: Target, foreign: tuple[str, ...]) -> RefusedError:
    """Return the refusal to program a namespace where *foreign* was seen; of many, the first few are named."""
    more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
    return RefusedError(
        f"{target.netns} is another tool's to redirect: it has {', '.join(foreign[:_NAMED])}{more}; "
        "it is observed, never programmed: remove that first",
        Refusal.OTHER_TOOL,
    )


class Programmer(Protocol):
    """The verbs.  Each proves the target first, and changes nothing where a proof fails.

    All raise :class:`~nodeagent.errors.InputError` (no such netns),
    :class:`~nodeagent.errors.RefusedError` (wrong netns, another tool's redirect),
    :class:`~nodeagent.errors.GoneError`, :class:`~nodeagent.errors.BusyError` or
    :class:`~nodeagent.errors.KernelError`.
    """

    def observe(self, target: Target, ruleset: RuleSet | None, choice: Choice) -> Observation:
        """Read back, compare with *ruleset* (None: nothing of ours should stand)."""

    def apply(self, target: Target, ruleset: RuleSet, choice: Choice) -> Applied:
        """Make *target* hold *ruleset*, atomically per table; nothing happens if it does."""

    def clear(self, target: Target, *, now: bool) -> Cleared:
        """Stop redirecting at once; remove the rest if nothing is intercepted any more.

        With *now*, remove it anyway, which resets what is still intercepted.
        """

    def backends(self) -> dict[BackendName, str | None]:
        """Say for each backend why this node cannot use it, or None if it can."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A pod that should hold the rule set *ruleset_id*, which sends connections to *proxy_port*."""

    target: Target
    ruleset_id: str
    proxy_port: int
    choice: Choice


@dataclass(frozen=True, slots=True)
class Recognised:
    """A pod that holds its rule set, by *backend*, and nothing foreign is in the way.

    ``cookie`` is the kernel's own name of its netns, ``number`` what events from there carry,
    ``interfaces`` the names of its network devices, by number.
    """

    ruleset_id: str
    backend: BackendName
    cookie: int | None
    number: int
    interfaces: Mapping[int, str]


class Watching(Protocol):
    """What finds drift."""

    def recognise(self, pods: Sequence[Expected], rulesets: Mapping[str, RuleSet]) -> list[Recognised | None]:
        """Say of each pod what an agent that starts has to know, if all is in order there; *rulesets* by their IDs.

        None where it is not, or where that cannot be told: an observation then says why.
        """

    def sweep(self, pods: Sequence[Expected]) -> list[bool]:
        """Say of each pod whether it holds its rule set, and nothing foreign is in the way.

        False as well where that cannot be told: an observation then says why.
        """

    def watch(self, target: Target) -> int:
        """Return the number that events from the target's netns will carry.

        Raises:
            InputError: no such netns.
            KernelError: the kernel does not number it.
        """

    def interfaces(self, target: Target) -> dict[int, str]:
        """Return the names of the target's network devices, by number."""

    def prepare(self, ruleset: RuleSet, choice: Choice) -> None:
        """Begin to encode what a pod will need soon; nobody waits, and whatever is wrong shows when it is needed."""

    def tracked(self, target: Target) -> tuple[int, int]:
        """Return how many connections the target's netns tracks, and how many it may; zeros where it tracks none."""

    def listening(self, target: Target, port: int) -> list[int]:
        """Return the IP versions in which somebody in the target's netns answers at *port* of loopback, over TCP.

        Raises:
            KernelError: the kernel does not tell: unknown is not nobody.
        """

    def events(self) -> int:
        """Return a descriptor, the caller's to close, of a netlink socket that hears of all nft changes.

        Each message carries, as ancillary data, the number of the netns that it is about.
        """


class GuardState(StrEnum):
    """Whether a pod's wire is guarded; ``pending``: it is being done, ask again."""

    ATTACHED = "attached"
    PENDING = "pending"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Guarded:
    """What became of a guard, and why it is unavailable."""

    state: GuardState
    why: str = ""


class Guarding(Protocol):
    """What counts packets that no cgroup hook can see, at the host's end of pods' veths.

    Nothing but the host's namespaces is ever entered for it, by a child that can do nothing else, and there
    nothing but the other end of the target's own veth is touched.
    """

    def guard(self, targets: Sequence[Target]) -> list[Guarded]:
        """Attach the guard where it is not, and say of each target what became of it; nobody waits.

        Who asks again for what was unavailable has it tried again.

        Raises:
            KernelError: nothing is counted, or the kernel refuses the guard's program.
        """

    def unguard(self, targets: Sequence[Target]) -> None:
        """Remove the guard from these targets, and wait for it; a target that has none, or is gone, is no error."""


class Hearing(Protocol):
    """What lets an agent hear the container runtime that may not open the runtime's socket itself."""

    def runtime(self) -> int:
        """Return a descriptor, the caller's to close, of a connection to the runtime's NRI socket.

        Nothing goes through it to the runtime but what a plugin says that only listens.

        Raises:
            BusyError: there is no such socket, or none was named to the programmer.
            KernelError: nobody listens there.
        """


SlotRef: TypeAlias = tuple[int, int]
"""A slot's position and generation."""


@dataclass(frozen=True, slots=True)
class CountingSettings:
    """Where to count: ``cgroup``, the cgroup v2 directory above all pods; ``bpffs``, where a BPF file system is.

    ``cache`` is a folder for compiled programs that nobody else may write to.
    """

    cgroup: str
    bpffs: str
    cache: str


@dataclass(frozen=True, slots=True)
class CountingHealth:
    """What the counting says about itself; ``refused`` are hooks that this kernel did not take, and why."""

    entries: int = 0
    capacity: int = 0
    lost_updates: int = 0
    unseen_packets: int = 0
    attached: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    unpinned: str = ""
    """Why what counts would not outlive the programmer; empty: it would."""


@dataclass(frozen=True, slots=True)
class Freed:
    """A slot to free; its counters go to *into*'s slot, or are dropped."""

    position: int
    generation: int
    into: FlowKey | None


class Counting(Protocol):
    """What counts in the kernel.  All raise :class:`~nodeagent.errors.KernelError`; nothing here touches rules."""

    def start_counting(self, settings: CountingSettings) -> None:
        """Load, pin and attach the programs, or take over those that run; harmless if they run.

        Raises:
            BusyError: they are being compiled; ask again.
        """

    def enrol(self, pod: CountedPod) -> None:
        """Count *pod*, or change what is known of it.

        Raises:
            BusyError: its number's slots are not released yet; ask again.
        """

    def enrolled(self) -> list[CountedPod]:
        """Return the pods that are counted, as they were enrolled, also by a programmer before this one."""

    def set_epoch(self, pod: int, epoch: int) -> None:
        """Let connections that begin from now on belong to *epoch*."""

    def forget(self, pod: int) -> None:
        """Count *pod* no longer; its slots stay until they are released.

        Raises:
            BusyError: packets that are under way may still be counted; ask the same again.
        """

    def evict(self, slots: Sequence[SlotRef]) -> None:
        """Let no packet find these slots any more; when this returns their counters stand still.

        It may be asked again, of slots that a :meth:`forget` has evicted.

        Raises:
            BusyError: packets that are under way may still be counted; ask the same again.
        """

    def release(self, slots: Sequence[Freed]) -> None:
        """Fold evicted slots into others, or drop them, and free them; never before 100 ms have passed.

        Raises:
            BusyError: packets that are under way may still be counted; ask the same again.
        """

    def slots(self) -> int:
        """Return a descriptor, the caller's to close, of the frozen slot array."""

    def counting_health(self) -> CountingHealth:
        """Say how full the maps are, and what was lost."""

    def stop_counting(self, bpffs: str) -> None:
        """Remove every pin below *bpffs*, and every attachment: for good."""
