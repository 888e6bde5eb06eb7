"""Everything but the ledger's series, by prometheus_client: what it is called and what it means."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from nodeagent.errors import Refusal
from nodeagent.metrics.text import clean
from nodeagent.metrics.view import DURATIONS, Durations, MetricsView
from nodeagent.policy import RejectionReason, Skip

POD_STATES: Final = ("intercepted", "observed", "refused", "pending", "skipped")
ANSWERS: Final = ("done", "late", "failed", "refused")
RELOADS: Final = ("applied", "rejected")

_Sample = tuple[Sequence[str], float]


class AgentCollector(Collector):
    """Shows one view."""

    def __init__(self, view: MetricsView) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """Return all families, those of one subject together."""
        yield from self._counting()
        yield from self._rules()
        yield from self._pods()
        yield from self._agent()

    def _counting(self) -> Iterator[Metric]:
        view = self._view
        samples = len(view.series) * (4 if view.detailed else 2)
        yield _gauge("nodeagent_egress_series", "Samples of nodeagent_egress metrics by destination.", samples)
        yield _gauge("nodeagent_egress_series_limit", "How many there may be.", view.series_limit)
        if view.overflow_bytes is not None:
            yield _counter(
                "nodeagent_egress_overflow_bytes", "IP bytes in no destination's series.", view.overflow_bytes
            )
        maps = view.maps
        yield _gauges("nodeagent_bpf_map_entries", "Entries in use.", ["map"], (([m.name], m.entries) for m in maps))
        yield _gauges(
            "nodeagent_bpf_map_capacity", "Entries that fit.", ["map"], (([m.name], m.capacity) for m in maps)
        )
        yield _counters(
            "nodeagent_bpf_lost_updates",
            "Updates that found no room: counted in a pod's overflow.",
            ["map"],
            (([m.name], m.lost_updates) for m in maps),
        )
        if view.unseen_packets is not None:
            yield _counter(
                "nodeagent_unseen_packets",
                "Packets that left a pod without passing where counting is done.",
                view.unseen_packets,
            )

    def _rules(self) -> Iterator[Metric]:
        view = self._view
        yield _gauges(
            "nodeagent_rules_in_sync",
            "Whether the rules in the kernel are those that were programmed.",
            ["source_namespace", "source_pod"],
            (([pod.namespace, pod.name], int(good)) for pod, good in view.in_sync.items()),
        )
        yield _counted("nodeagent_reconciliations", "Visits to pods.", "result", view.reconciliations)
        yield _histogram(
            "nodeagent_reconciliation_duration_seconds", "How long visits took.", view.reconciliation_durations
        )
        yield _counter("nodeagent_drift_repairs", "Rules that were put right again.", view.drift_repairs)

    def _pods(self) -> Iterator[Metric]:
        view = self._view
        states = dict.fromkeys(POD_STATES, 0) | dict(view.pod_states)
        yield _gauges("nodeagent_pods", "Pods on this node.", ["state"], (([s], n) for s, n in states.items()))
        skipped = dict.fromkeys((skip.value for skip in Skip), 0) | dict(view.skipped_pods)
        yield _gauges(
            "nodeagent_skipped_pods",
            "Pods that are left alone, and why.",
            ["why"],
            (([s], n) for s, n in skipped.items()),
        )
        yield _gauge(
            "nodeagent_unanswered_pods",
            "Intercepted pods where no sidecar listens: their connections are refused.",
            view.unanswered_pods,
        )
        yield _histogram(
            "nodeagent_time_to_intercept_seconds",
            "From a pod's first sight, or the runtime's call, to its rules.",
            view.times_to_intercept,
        )
        yield _counter("nodeagent_late_pods", "Pods that ran before their rules stood.", view.late_pods)
        if view.runtime_connected is not None:
            yield _gauge(
                "nodeagent_runtime_connected",
                "Whether the container runtime waits for us before it starts a pod.",
                int(view.runtime_connected),
            )
        if view.runtime_answers is not None:
            answers = dict.fromkeys(ANSWERS, 0) | dict(view.runtime_answers)
            yield _counted("nodeagent_runtime_answers", "Answers to the container runtime.", "result", answers)
            yield _histogram(
                "nodeagent_runtime_answer_duration_seconds",
                "How long the container runtime waited for an answer.",
                view.runtime_answer_durations,
            )
        yield _gauges(
            "nodeagent_excluded_range_pods",
            "Pods that exclude a named range of the configuration as a whole.",
            ["range"],
            (([name], count) for name, count in view.excluded_ranges.items()),
        )
        yield _counted(
            "nodeagent_refusals",
            "Pods that were not programmed.",
            "reason",
            dict.fromkeys((reason.value for reason in Refusal), 0) | dict(view.refusals),
        )
        known = dict.fromkeys((reason.value for reason in RejectionReason), 0)
        yield _counted(
            "nodeagent_annotation_rejections",
            "Annotations that were refused whole.",
            "reason",
            known | dict(view.annotation_rejections),
        )

    def _agent(self) -> Iterator[Metric]:
        view = self._view
        reloads = dict.fromkeys(RELOADS, 0) | dict(view.config_reloads)
        yield _counted("nodeagent_config_reloads", "Edits of the configuration.", "result", reloads)
        if view.watch_age_seconds is not None:
            yield _gauge("nodeagent_watch_age_seconds", "Since pods were last heard of.", view.watch_age_seconds)
        yield _gauge(
            "nodeagent_state_kept", "Whether counts would go on where they are after a restart.", int(view.state_kept)
        )
        yield _gauges(
            "nodeagent_trouble",
            "Whether /readyz names this condition now.",
            ["condition"],
            (([name], int(is_there)) for name, is_there in view.troubles.items()),
        )
        build = [([view.version, view.kernel], 1.0)]
        yield _gauges("nodeagent_build_info", "Which agent on which kernel.", ["version", "kernel"], build)
        yield from view.processes
        yield _gauges("nodeagent_backend_info", "How rules are made.", ["backend"], (([b], 1) for b in view.backends))


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _gauges(name: str, text: str, labels: Sequence[str], samples: Iterable[_Sample]) -> Metric:
    return _fill(GaugeMetricFamily(name, text, labels=labels), samples)


def _counters(name: str, text: str, labels: Sequence[str], samples: Iterable[_Sample]) -> Metric:
    return _fill(CounterMetricFamily(name, text, labels=labels), samples)


def _counted(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    return _counters(name, text, [label], (([value], count) for value, count in counts.items()))


def _fill(family: GaugeMetricFamily | CounterMetricFamily, samples: Iterable[_Sample]) -> Metric:
    """Add the samples; values that look alike once they are harmless add up."""
    sums: dict[tuple[str, ...], float] = {}
    for values, number in samples:
        cleaned = tuple(map(clean, values))
        sums[cleaned] = sums.get(cleaned, 0) + number
    for cleaned, number in sums.items():
        family.add_metric(cleaned, number)
    return family


def _histogram(name: str, text: str, durations: Durations) -> Metric:
    bounds = (*(str(bound) for bound in DURATIONS), "+Inf")
    buckets = list(zip(bounds, accumulate(durations.counts), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=durations.seconds)
