"""What the agent counts about itself, and the buckets that it sorts durations into."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from nodeagent.agent.pod import Pod
from nodeagent.errors import Refusal

DURATIONS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(slots=True)
class Histogram:
    """Durations in seconds, by upper bounds; the last count is of those above all bounds."""

    bounds: Sequence[float] = DURATIONS
    counts: list[int] = field(default_factory=lambda: [0] * (len(DURATIONS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Add one duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


RECENT = 600.0
"""Seconds that count as lately."""


@dataclass(slots=True)
class Loss:
    """A number that should never grow, and when it last did.

    >>> loss = Loss()
    >>> loss.note(3, now=10.0); loss.note(3, now=500.0); loss.is_recent(500.0), loss.is_recent(611.0)
    (True, False)
    """

    number: int = 0
    grew_at: float | None = None

    def note(self, number: int, now: float) -> None:
        """Take note of it; what was there at the first look may be of any time, and counts as of now."""
        if number > self.number:
            self.grew_at = now
        self.number = number

    def is_recent(self, now: float) -> bool:
        """Say whether it grew lately."""
        return self.grew_at is not None and now - self.grew_at <= RECENT


@dataclass(slots=True)
class Facts:
    """Counters since the agent's start; keys are results and reasons, all of closed sets."""

    reconciliations: Counter[str] = field(default_factory=Counter)
    reconciliation_seconds: Histogram = field(default_factory=Histogram)
    time_to_intercept_seconds: Histogram = field(default_factory=Histogram)
    drift_repairs: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    annotation_rejections: Counter[str] = field(default_factory=Counter)
    config_reloads: Counter[str] = field(default_factory=Counter)
    programmer_restarts: int = 0
    events_lost: int = 0
    late_pods: int = 0
    runtime_answers: Counter[str] = field(default_factory=Counter)
    runtime_answer_seconds: Histogram = field(default_factory=Histogram)

    def refuse(self, pod: Pod, reason: Refusal) -> None:
        """Count that *pod* is refused, once for each time that it begins to be."""
        self.refusals[reason] += pod.refused is not reason
        pod.refused = reason

    def note_late(self, pod: Pod, why: str) -> None:
        """Take note, once, that *pod* ran without the rules that it should have had."""
        if pod.wanted.ruleset and not (pod.is_late or pod.was_there):
            pod.is_late = True
            self.late_pods += 1
            structlog.get_logger().warning("late pod", pod=str(pod.key), uid=pod.key.uid, why=why)
