"""The whole fleet: what bypasses, why, whether it should, and how the agents are."""

from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.builders.statetimeline import Panel as TimelinePanel
from grafana_foundation_sdk.builders.timeseries import Panel as TimeseriesPanel

from daemonset.observability import egress, upkeep
from daemonset.observability.frame import CLUSTER, CURVE_TO_NAMESPACE, CURVE_TO_NODE, NAMESPACE, POD, add, any_of, begin
from daemonset.observability.panels import Look, Query, Text, Unit, graph, timeline
from daemonset.observability.promql import AGENTS, EGRESS, share
from daemonset.observability.words import IN_SYNC, RATES

UID: Final = "nodeagent-fleet"


def fleet() -> Dashboard:
    """Return the dashboard."""
    made = begin(
        UID,
        "nodeagent / Fleet",
        "What bypasses the sidecars of all nodes, why, and whether it should.",
        any_of(CLUSTER),
        any_of(NAMESPACE),
        any_of(POD),
    )
    first = (
        egress.bypassed_share(EGRESS),
        egress.leaking(EGRESS),
        egress.out_of_sync(EGRESS),
        upkeep.agents_down(AGENTS),
    )
    made = add(made, "In ten seconds", first)
    why = egress.by_reason(EGRESS), _by_namespace(), egress.unexpected(EGRESS), egress.leaks_by_pod(EGRESS)
    made = add(made, "What bypasses, and why", why)
    who = egress.top_destinations(EGRESS), egress.top_pods(EGRESS), egress.new_destinations(EGRESS), upkeep.dead(AGENTS)
    made = add(made, "Who, and where to", (*who, egress.udp_beside_tcp(EGRESS), egress.by_verdict(EGRESS)))
    rules = _in_sync(), upkeep.pods_by_state(AGENTS), upkeep.repairs(AGENTS), upkeep.time_to_intercept(AGENTS)
    made = add(made, "Rules", (*rules, upkeep.refused(AGENTS), upkeep.versions(AGENTS)))
    cost = upkeep.processor(AGENTS), upkeep.memory(AGENTS), upkeep.scraping(AGENTS)
    return add(made, "The agents' own cost and room", (upkeep.room(AGENTS), upkeep.unattributed(AGENTS), *cost))


def _by_namespace() -> TimeseriesPanel:
    return graph(
        Text("Share that bypasses, by namespace", "By bytes, of all that a namespace's pods send."),
        [Query(share(RATES, EGRESS, "cluster, source_namespace"), "{{source_namespace}}")],
        Look(Unit.SHARE, link=CURVE_TO_NAMESPACE),
    )


def _in_sync() -> TimelinePanel:
    return timeline(
        Text("Rules in sync, by node", "Share of a node's pods whose rules are as they were programmed."),
        Query(f"{IN_SYNC}{{{AGENTS}}}", "{{instance}}"),
        Look(Unit.SHARE, limits={}, link=CURVE_TO_NODE),
        {},
    )
