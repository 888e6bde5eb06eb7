"""What the agent knows of one pod."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from nodeagent.errors import Refusal
from nodeagent.model import (
    CountedPod,
    Hook,
    Ipv6Mode,
    Mode,
    PodKey,
    PodManifest,
    PodName,
    PodRecord,
    Policy,
    Redirect,
    RuleSet,
)
from nodeagent.netns.inhabited import PodNetns
from nodeagent.policy import OptIn, Rejection, Resolution, Skip
from nodeagent.programmer.seam import Choice, Expected, Guarded, Recognised, Target
from nodeagent.runtime.cgroups import PodCgroup


class Stage(StrEnum):
    """How far a pod has come."""

    PENDING = "pending"
    INTERCEPTED = "intercepted"
    OBSERVED = "observed"
    REFUSED = "refused"
    SKIPPED = "skipped"


class Source(StrEnum):
    """Who said that there is this pod."""

    DIRECTORY = "directory"
    CLUSTER = "cluster"
    RUNTIME = "runtime"
    """The container runtime, of a pod that the API server has not named (yet)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a pod's annotations and the configuration ask for; ``ruleset`` is None unless it is to be enforced.

    ``opted`` says of a pod of the cluster whether it is ours, and why.
    """

    resolution: Resolution
    ruleset: RuleSet | None
    opted: OptIn | None = None

    @property
    def skipped(self) -> Skip | None:
        """Why it is left alone; None if it is not, or if a directory names it."""
        return self.opted.skipped if self.opted else None

    @property
    def policy(self) -> Policy:
        """The policy."""
        return self.resolution.policy

    @property
    def ruleset_id(self) -> str | None:
        """The name of the rule set, if there is one."""
        return self.ruleset.id if self.ruleset else None


@dataclass(frozen=True, slots=True)
class Transit:
    """A write that was made: from ``due`` on, ``epoch`` (an even one) may begin."""

    due: float
    epoch: int


@dataclass(slots=True)
class Counted:
    """What the kernel's counters and the ledger know of a pod.

    ``epoch`` is what the kernel was told last, ``epochs`` the policies of the even ones.
    ``containers`` maps cgroups to names, past ones included.
    """

    id: int = 0
    number: int = 0
    cookie: int | None = None
    cgroup: PodCgroup | None = None
    epoch: int = 0
    epochs: dict[int, Policy] = field(default_factory=dict)
    transit: Transit | None = None
    containers: dict[int, str] = field(default_factory=dict)
    sidecars: frozenset[int] = frozenset()
    interfaces: dict[int, str] = field(default_factory=dict)
    told: CountedPod | None = None
    uncounted: str = ""
    """Why it has no ``id``, once that was looked for."""
    is_recalled: bool = False
    """Whether ``epoch`` is a former agent's last one, which may not have come into force."""

    @property
    def following(self) -> int:
        """The even epoch that comes next."""
        return (self.epoch // 2 + 1) * 2

    @property
    def policy(self) -> Policy | None:
        """The policy of the current epoch; None in transit, and before the first."""
        return self.epochs.get(self.epoch)


@dataclass(slots=True)
class Pod:
    """One pod; only the loop touches it, one step at a time: who takes one holds ``stepping``."""

    key: PodKey
    manifest: PodManifest
    wanted: Wanted
    first_seen: float
    source: Source = Source.DIRECTORY
    good: Mapping[str, str] | None = None
    """The last annotations that were not refused."""
    rejected: tuple[Rejection, ...] = ()
    """What is wrong with the present ones: the last good ones hold."""
    counted: Counted = field(default_factory=Counted)
    stage: Stage = Stage.PENDING
    detail: str = ""
    refused: Refusal | None = None
    """Why it was refused, unless that has passed."""
    retiring: bool = False
    retired_at: float = 0.0
    is_gone: bool = False
    """Whether nothing is left to do for it."""
    is_known: bool = False
    """Whether a look at its netns has succeeded."""
    ruleset_id: str | None = None
    backend: str | None = None
    in_sync: bool = False
    foreign: tuple[str, ...] = ()
    in_force_since: float | None = None
    failures: int = 0
    watched: int | None = None
    repairs: int = 0
    lodging: PodNetns | None = None
    """Where the processes of a pod of the cluster live, once that is known."""
    cookie: int | None = None
    """The kernel's own name of its netns, as it was last seen."""
    tracked: tuple[int, int] = (0, 0)
    """How many connections its netns tracks, and how many it may."""
    listens: frozenset[int] | None = None
    """The IP versions in which somebody answers at the proxy's port; None: nobody looked yet."""
    is_held: bool = False
    """Whether the container runtime waits for us: none of its containers can have started."""
    is_late: bool = False
    """Whether a container ran before its first rules stood."""
    was_there: bool = False
    """Whether it ran before this node's first agent did: nobody could have been in time."""
    has_moved: bool = False
    """Whether its netns is another one than that which was programmed: its sandbox was made anew."""

    seen: Recognised | None = None
    """What the next step need not look for, because it was looked at together with others."""

    stepping: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False, repr=False)

    guard: Guarded | None = None
    """Whether the host's end of its wire is guarded; None: nobody asked yet."""

    @property
    def name(self) -> PodName:
        """Its name, for people and metrics."""
        return PodName(self.key.namespace, self.key.name, self.key.uid)

    @property
    def target(self) -> Target:
        """Its netns, and what must be true of it: for looking."""
        return Target(self.lodging or self.key.netns, self.manifest.pod_ips)

    @property
    def proven(self) -> Target:
        """The same netns that was looked at last, and no other: for writing."""
        return replace(self.target, cookie=self.cookie) if self.lodging else self.target

    def expected(self, choice: Choice) -> Expected | None:
        """Return what its netns should hold; None if that is nothing of ours."""
        ruleset = self.wanted.ruleset
        if ruleset is None:
            return None
        return Expected(self.proven, ruleset.id, self.proxy_port, choice)

    @property
    def is_settled(self) -> bool:
        """Whether what it holds is all that it should, and no epoch is on its way."""
        return self.stage is Stage.INTERCEPTED and self.in_sync and not self.counted.transit and not self.retiring

    @property
    def proxy_port(self) -> int:
        """Where its rules send connections; 0 if they send none."""
        ruleset = self.wanted.ruleset
        rules = ruleset.chain(Hook.REDIRECT) if ruleset else ()
        ports = [rule.action.port for rule in rules if isinstance(rule.action, Redirect)]
        return ports[-1] if ports else 0

    @property
    def unanswered(self) -> str:
        """Say that nobody answers where its connections are sent; empty if somebody does, or nobody looked.

        IPv6 matters where the pod has such an address, and it is not left alone.
        """
        if self.listens is None or not (self.is_settled and self.proxy_port):
            return ""
        versions = {address.version for address in self.manifest.pod_ips} or {4}
        if self.wanted.policy.ipv6 is Ipv6Mode.BYPASS:
            versions.discard(6)
        silent = versions - self.listens
        if not silent:
            return ""
        family = "" if silent == versions else f" over {' and '.join(f'IPv{version}' for version in sorted(silent))}"
        return f"no sidecar listens at port {self.proxy_port}{family}: connections are refused"

    @property
    def has_had_rules(self) -> bool:
        """Whether rules of ours should stand in it, and once did: also where putting them right is refused."""
        if self.stage is Stage.REFUSED:
            return self.wanted.ruleset is not None and self.counted.policy is not None
        return self.stage is Stage.INTERCEPTED

    def record(self) -> PodRecord:
        """Return what the ledger needs to judge its flows."""
        counted = self.counted
        return PodRecord(
            name=self.name,
            id=counted.id,
            policy=self.wanted.policy,
            enforced=self.wanted.policy.mode is Mode.ENFORCE and self.stage is not Stage.OBSERVED and not self.retiring,
            redirected_by_other=bool(self.foreign),
            epochs=dict(counted.epochs),
            containers=dict(counted.containers),
            sidecars=counted.sidecars,
            interfaces=dict(counted.interfaces),
            netns=self.key.netns,
            late=self.is_late,
        )
