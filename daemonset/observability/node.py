"""One node: its pods, their rules, and its agent."""

from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.builders.statetimeline import Panel as TimelinePanel
from grafana_foundation_sdk.builders.timeseries import Panel as TimeseriesPanel

from daemonset.observability import egress, upkeep
from daemonset.observability.frame import (
    CLUSTER,
    CURVE_TO_POD,
    NAMESPACE_ON_NODE,
    NODE,
    POD,
    add,
    any_of,
    begin,
    one_of,
)
from daemonset.observability.panels import GREEN, RED, Look, Query, Text, Unit, graph, timeline
from daemonset.observability.promql import EGRESS
from daemonset.observability.promql import NODE as AGENT

UID: Final = "nodeagent-node"

_PODS: Final = f'instance="$node", {EGRESS}'


def node() -> Dashboard:
    """Return the dashboard."""
    made = begin(
        UID,
        "nodeagent / Node",
        "One node: what its pods send past their sidecars, their rules, and what the agent does and costs.",
        any_of(CLUSTER),
        one_of(NODE),
        any_of(NAMESPACE_ON_NODE),
        any_of(POD),
    )
    first = egress.bypassed_share(_PODS), egress.leaking(_PODS), egress.out_of_sync(_PODS), upkeep.agents_down(AGENT)
    made = add(made, "In ten seconds", first)
    why = egress.by_reason(_PODS), egress.by_verdict(_PODS), egress.leaks_by_pod(_PODS), egress.unexpected(_PODS)
    made = add(made, "What bypasses, and why", (*why, egress.top_pods(_PODS), egress.top_destinations(_PODS)))
    rules = _in_sync(), upkeep.pods_by_state(AGENT), upkeep.repairs(AGENT), upkeep.reconciling(AGENT), _visits()
    made = add(made, "Rules", (*rules, upkeep.refused(AGENT), upkeep.time_to_intercept(AGENT), upkeep.versions(AGENT)))
    cost = upkeep.processor(AGENT), upkeep.memory(AGENT), upkeep.scraping(AGENT)
    return add(made, "The agent's own cost and room", (upkeep.room(AGENT), upkeep.unattributed(AGENT), *cost))


def _in_sync() -> TimelinePanel:
    by = "source_namespace, source_pod"
    return timeline(
        Text("Rules in sync, by pod", "Whether the rules in the kernel are those that were programmed."),
        Query(f"min by ({by}) (nodeagent_rules_in_sync{{{_PODS}}})", "{{source_namespace}}/{{source_pod}}"),
        Look(Unit.COUNT, link=CURVE_TO_POD),
        {"1": ("in sync", GREEN), "0": ("differs", RED)},
    )


def _visits() -> TimeseriesPanel:
    buckets = f"sum by (le) (rate(nodeagent_reconciliation_duration_seconds_bucket{{{AGENT}}}[$__range]))"
    return graph(
        Text("How long a visit takes", "Proofs, reading back and writing, over the time shown."),
        [Query(f"histogram_quantile({q}, {buckets})", f"p{q * 100:.0f}") for q in (0.5, 0.99)],
        Look(Unit.SECONDS),
    )
