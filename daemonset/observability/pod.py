"""One pod: where its traffic goes, and whether that is what its annotations say."""

from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.builders.stat import Panel as StatPanel
from grafana_foundation_sdk.builders.statetimeline import Panel as TimelinePanel

from daemonset.observability import egress
from daemonset.observability.frame import CLUSTER, NAMESPACE, POD, add, any_of, begin, one_of
from daemonset.observability.panels import GREEN, RED, Look, Query, Text, Unit, stat, timeline
from daemonset.observability.promql import EGRESS

UID: Final = "nodeagent-pod"

_ONE: Final = EGRESS.replace("=~", "=").replace('cluster="', 'cluster=~"')


def pod() -> Dashboard:
    """Return the dashboard."""
    made = begin(
        UID,
        "nodeagent / Pod",
        "One pod: what its sidecar sees of its traffic, what bypasses it, and why.",
        any_of(CLUSTER),
        one_of(NAMESPACE),
        one_of(POD),
    )
    first = egress.bypassed_share(_ONE), egress.leaking(_ONE), egress.out_of_sync(_ONE), _sent()
    made = add(made, "In ten seconds", first)
    why = egress.by_verdict(_ONE), egress.by_reason(_ONE), egress.leaks_by_pod(_ONE), egress.connections(_ONE)
    made = add(made, "What bypasses, and why", (*why, _in_sync(), egress.udp_beside_tcp(_ONE)))
    tables = (
        egress.top_destinations(_ONE),
        egress.top_destinations(_ONE, "intercepted"),
        egress.unexpected(_ONE),
        egress.new_destinations(_ONE),
    )
    return add(made, "Where to", tables)


def _sent() -> StatPanel:
    return stat(
        Text("Sent by the app", "IP bytes, intercepted and bypassed; the sidecar's own leg aside."),
        Query(
            f'sum(rate(nodeagent_egress_verdict_bytes_total{{{_ONE}, verdict=~"bypassed|intercepted"}}'
            "[$__rate_interval]))"
        ),
        Look(Unit.BYTES_PER_SECOND, width=6, height=5),
    )


def _in_sync() -> TimelinePanel:
    return timeline(
        Text("Rules in sync", "Whether the rules in the kernel are those that were programmed."),
        Query(f"min by (source_pod) (nodeagent_rules_in_sync{{{_ONE}}})", "{{source_pod}}"),
        Look(Unit.COUNT, height=8),
        {"1": ("in sync", GREEN), "0": ("differs", RED)},
    )
