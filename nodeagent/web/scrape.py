"""What ``/metrics`` says: the agent as one view, rendered at most once a second however many scrape."""

import asyncio
import platform
import time
from collections import Counter
from collections.abc import Sequence

from aiohttp import web
from prometheus_client import ProcessCollector
from prometheus_client.core import Metric

from nodeagent import __version__
from nodeagent.agent.facts import Histogram
from nodeagent.agent.health import CONDITIONS, troubles
from nodeagent.agent.loop import Agent
from nodeagent.agent.pod import Pod, Source, Stage
from nodeagent.metrics import FRESH, Durations, Exposition, MapHealth, MetricsView
from nodeagent.model import Policy, Reason
from nodeagent.policy import Configuration, Skip

_AGENT = ProcessCollector(registry=None)


class Scrape:
    """Renders what *agent* knows."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._exposition = Exposition()
        self._late: set[tuple[str, str]] = set()
        self._late_pods = 0
        self._noted: set[tuple[str, str]] = set()
        """Pods of a cluster: whether they are late is known when their rules are written."""

    def answer(self, request: web.Request) -> web.Response:
        """Return the metrics in the format and the encoding that *request* prefers."""
        headers = request.headers
        made = self._exposition.answer(
            self._view, time.monotonic(), headers.get("Accept", ""), headers.get("Accept-Encoding", "")
        )
        asyncio.get_running_loop().call_later(2 * FRESH, self._forget)
        response = web.Response(body=made.body, headers={"Content-Type": made.content_type})
        if made.encoding:
            response.headers["Content-Encoding"] = made.encoding
        return response

    def _forget(self) -> None:
        self._exposition.forget(time.monotonic())

    def _view(self) -> MetricsView:
        agent = self._agent
        agent.census.look()
        ledger, facts, health = agent.census.ledger, agent.facts, agent.census.health
        totals = ledger.totals()
        counted = {(t.namespace, t.pod) for t in totals}
        noted = {pod.key[:2] for pod in agent.roster if pod.source is not Source.DIRECTORY}
        self._noted = self._noted & counted | noted
        late = {(t.namespace, t.pod) for t in totals if t.account.reason is Reason.BEFORE_RULES} - self._noted
        self._late, self._late_pods = late, self._late_pods + len(late - self._late)
        slots = MapHealth("slots", health.entries, health.capacity, health.lost_updates)
        pods = list(agent.roster)
        return MetricsView(
            version=__version__,
            kernel=platform.release(),
            backends=sorted({pod.backend for pod in pods if pod.backend}),
            series=ledger.series(),
            totals=totals,
            pods=[pod.name for pod in pods if pod.counted.told],
            series_limit=agent.roster.configuration.settings.ledger.series_limit,
            overflow_bytes=ledger.overflow_bytes if ledger.is_open else None,
            maps=[slots] if health.capacity else [],
            in_sync={pod.name: pod.in_sync for pod in pods if pod.has_had_rules},
            pod_states=Counter(pod.stage.value for pod in pods),
            skipped_pods=Counter(_why_skipped(pod) for pod in pods if pod.stage is Stage.SKIPPED),
            unanswered_pods=sum(1 for pod in pods if pod.unanswered),
            reconciliations=facts.reconciliations,
            reconciliation_durations=_durations(facts.reconciliation_seconds),
            runtime_answers=facts.runtime_answers if agent.sandboxes else None,
            runtime_answer_durations=_durations(facts.runtime_answer_seconds),
            runtime_connected=agent.sandboxes.runtime is not None if agent.sandboxes else None,
            times_to_intercept=_durations(facts.time_to_intercept_seconds),
            late_pods=self._late_pods + facts.late_pods,
            drift_repairs=facts.drift_repairs,
            refusals=facts.refusals,
            annotation_rejections=facts.annotation_rejections,
            config_reloads=facts.config_reloads,
            watch_age_seconds=agent.watch_age,
            unseen_packets=health.unseen_packets if agent.guards.is_any_attached else None,
            state_kept=agent.state_problem is None,
            troubles=dict.fromkeys(CONDITIONS, False) | {found.condition: True for found in troubles(agent)},
            excluded_ranges=excluded_ranges(agent.roster.configuration, [pod.wanted.policy for pod in pods]),
            processes=self._processes(),
        )

    def _processes(self) -> Sequence[Metric]:
        """Return what the agent costs, and its programmer as far as it may be looked at."""
        pid = self._agent.worker.pid
        found = list(_AGENT.collect())
        if pid:
            found += ProcessCollector("nodeagent_programmer", lambda: pid, registry=None).collect()
        return found


def excluded_ranges(configuration: Configuration, policies: Sequence[Policy]) -> dict[str, int]:
    """Return how many pods exclude each named range as a whole; pods that say the same share a policy."""
    pods = Counter(map(id, policies))
    excludes = {id(policy): policy.exclude_ranges for policy in policies}
    return {
        name: sum(count for key, count in pods.items() if all(map(excludes[key].covers, networks)))
        for name, networks in configuration.ranges.items()
    }


def _why_skipped(pod: Pod) -> str:
    """Return why a pod is left alone; one that a directory names knows two reasons."""
    skipped = pod.wanted.skipped or (Skip.HOST_NETWORK if pod.manifest.host_network else Skip.DISABLED)
    return skipped.value


def _durations(histogram: Histogram) -> Durations:
    return Durations(tuple(histogram.counts), histogram.total)
