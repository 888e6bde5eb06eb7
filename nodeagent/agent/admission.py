"""A new pod, for which the container runtime waits, into the kernel: everything by one errand of the worker.

On a node that is busy with starting pods, each question of the loop costs as much as what it asks for.
"""

from dataclasses import dataclass, replace
from typing import Final

import structlog

from nodeagent.agent.worker import Privileged
from nodeagent.errors import KernelError
from nodeagent.model import CountedPod, RuleSet
from nodeagent.programmer.seam import Applied, Choice, Observation, Target

_NOBODY: Final[frozenset[int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be written where; *count* is what the kernel's counters are to know, *counted* what they do."""

    target: Target
    ruleset: RuleSet
    choice: Choice
    count: CountedPod | None = None
    counted: CountedPod | None = None


def admit(
    programmer: Privileged, entry: Entry, others: frozenset[int] = _NOBODY
) -> tuple[Observation, Applied | None, CountedPod | None]:
    """Return what was found, what was written, and what the counters know.

    Nothing is written where another pod lives (*others* are their netns cookies), or another tool redirects.

    Raises:
        NodeagentError: as the verbs do.
    """
    found = programmer.observe(entry.target, entry.ruleset, entry.choice)
    if found.foreign or found.cookie in others:
        return found, None, entry.counted
    told = _count(programmer, entry)
    proven = replace(entry.target, cookie=found.cookie)
    return found, programmer.apply(proven, entry.ruleset, entry.choice), told


def _count(programmer: Privileged, entry: Entry) -> CountedPod | None:
    """Count, if that can be; interception never depends on it."""
    count, counted = entry.count, entry.counted
    if count is None:
        return counted
    try:
        if counted and replace(counted, epoch=count.epoch) == count:
            programmer.set_epoch(count.id, count.epoch)
        else:
            programmer.enrol(count)
    except KernelError as error:
        structlog.get_logger().warning("not counted yet", error=str(error))
        return None
    return count
