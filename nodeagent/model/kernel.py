"""What the kernel holds, and what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class BackendName(StrEnum):
    """How a rule set reaches the kernel."""

    NFT = "nft"
    LEGACY = "legacy"


@dataclass(frozen=True, slots=True)
class KernelRule:
    """One rule as the kernel reported it.

    ``image`` holds the rule's normalised bytes (no counters, no handles, no positions);
    ``text`` is for people and decides nothing.
    """

    image: bytes
    text: str


@dataclass(frozen=True, slots=True)
class KernelState:
    """Our rules in one netns, by chain, content and order.

    Keys of ``chains`` name family, table and chain (``"ip/nat/NODEAGENT_OUTPUT"``,
    ``"inet/nodeagent/redirect"``); an entry ``"…#"`` holds a chain's own attributes, and sets
    are chains whose rules are their elements.  Two states are equal if the kernel would
    treat every packet alike.
    """

    backend: BackendName
    chains: Mapping[str, tuple[KernelRule, ...]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one backend found in the netns that its thread is in.

    ``state`` is None where nothing of ours stands.  ``ruleset_id`` is what our own rules say
    they are; the truth is ``state``.  ``ahead`` names strangers' rules that run before ours;
    ``foreign`` names what was seen of other proxies: chains and tables by their names, where
    such can redirect, and redirects (``"Istio's chain ISTIO_OUTPUT (ip nat, legacy)"``).
    ``in_use`` says whether anybody, we included, has rules in this backend.
    """

    state: KernelState | None = None
    ruleset_id: str | None = None
    ahead: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    in_use: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """A rule set encoded for one backend on this kernel: compile once, replay per pod.

    ``state`` is what :meth:`Backend.read` reports once ``payload`` has been written, found
    out in a scratch netns; ``payload`` means something to its backend only.
    """

    ruleset_id: str
    backend: BackendName
    state: KernelState
    payload: bytes


class ChangeKind(StrEnum):
    """What is wrong with a rule in the kernel, seen from the policy."""

    MISSING = "missing"
    EXTRA = "extra"
    AHEAD = "ahead"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between what should stand in the kernel and what does.

    ``position`` counts from 1 within ``chain``; ``text`` is the rule in question.
    """

    kind: ChangeKind
    chain: str
    position: int
    text: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What an apply would do.  An empty plan is the one definition of *converged*."""

    backend: BackendName
    ruleset_id: str | None
    changes: tuple[Change, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changes)
