"""What the agent tells of itself: everything on /metrics, as plain data at one moment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self

from prometheus_client.core import Metric

from nodeagent.ledger import SeriesValue, Total
from nodeagent.model import PodName

DURATIONS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of buckets, in seconds."""


@dataclass(frozen=True)
class Durations:
    """A histogram: how many took up to each of DURATIONS, each counted once, and how many longer.

    >>> Durations().observe(0.002).observe(60).seconds
    60.002
    """

    counts: tuple[int, ...] = (0,) * (len(DURATIONS) + 1)
    seconds: float = 0.0

    def observe(self, seconds: float) -> Self:
        """Return the histogram with one more."""
        place = next((n for n, bound in enumerate(DURATIONS) if seconds <= bound), len(DURATIONS))
        counts = (*self.counts[:place], self.counts[place] + 1, *self.counts[place + 1 :])
        return replace(self, counts=counts, seconds=self.seconds + seconds)


@dataclass(frozen=True)
class MapHealth:
    """How full a map of the kernel's is, and how many updates found no room; ``name`` as in bpf/."""

    name: str
    entries: int
    capacity: int
    lost_updates: int


@dataclass(frozen=True)
class MetricsView:
    """One moment of the agent.  Counts are since the agent's start, unless they are the ledger's.

    ``series``, ``totals``, ``overflow_bytes`` are the ledger's; ``detailed`` adds packets and
    received bytes to the series.  ``pods`` are those counted: their totals begin at 0.
    ``in_sync`` says of each programmed pod whether its rules stand as they should.  Mappings have
    the label's value as key; their known values need not be in them.  None is unknown, and not shown.
    ``runtime_connected`` says whether a container runtime waits for our answers, by whose outcome
    ``runtime_answers`` counts; None where it was not asked to.
    ``skipped_pods`` says why pods are left alone, ``unanswered_pods`` of how many nobody listens at the proxy's port.
    ``excluded_ranges`` says how many pods exclude each named range as a whole.  ``processes`` is
    what the agent's processes cost, as prometheus_client's collectors found it.  ``troubles`` says of
    each condition that /readyz may name whether it does.
    """

    version: str
    kernel: str
    backends: Sequence[str] = ()
    series: Sequence[SeriesValue] = ()
    totals: Sequence[Total] = ()
    pods: Sequence[PodName] = ()
    detailed: bool = False
    series_limit: int = 10_000
    overflow_bytes: int | None = 0
    maps: Sequence[MapHealth] = ()
    in_sync: Mapping[PodName, bool] = field(default_factory=dict)
    pod_states: Mapping[str, int] = field(default_factory=dict)
    skipped_pods: Mapping[str, int] = field(default_factory=dict)
    unanswered_pods: int = 0
    reconciliations: Mapping[str, int] = field(default_factory=dict)
    reconciliation_durations: Durations = Durations()
    times_to_intercept: Durations = Durations()
    late_pods: int = 0
    runtime_connected: bool | None = None
    runtime_answers: Mapping[str, int] | None = None
    runtime_answer_durations: Durations = Durations()
    drift_repairs: int = 0
    refusals: Mapping[str, int] = field(default_factory=dict)
    annotation_rejections: Mapping[str, int] = field(default_factory=dict)
    config_reloads: Mapping[str, int] = field(default_factory=dict)
    watch_age_seconds: float | None = None
    unseen_packets: int | None = None
    state_kept: bool = True
    troubles: Mapping[str, bool] = field(default_factory=dict)
    excluded_ranges: Mapping[str, int] = field(default_factory=dict)
    processes: Sequence[Metric] = ()
