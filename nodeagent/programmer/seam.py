"""The seam between the agent, which needs no privilege, and the programmer, which has it.

A handful of verbs over frozen data.  Today it has an implementation in a child process
(:mod:`nodeagent.programmer.process`), and one in memory; the socket between two containers
speaks the same verbs.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from nodeagent.errors import RefusedError
from nodeagent.model import Address, BackendName, Plan, RuleSet

_NAMED: Final = 6


class Choice(StrEnum):
    """Which backend to use; ``auto`` goes by what is there in the netns."""

    AUTO = "auto"
    NFT = "nft"
    LEGACY = "legacy"


@dataclass(frozen=True, slots=True)
class Target:
    """A network namespace, and what must be true of it before anything is written.

    ``netns`` is a path (``/proc/123/ns/net``, ``/run/netns/pod``) or a PID; ``addresses``
    must all be configured inside.
    """

    netns: str | int
    addresses: tuple[Address, ...] = ()


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
        "it is observed, never programmed: remove that first"
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
