"""Panels about pods' egress that fleet, node and pod show alike; *selector* says whose."""

from typing import Final

from grafana_foundation_sdk.builders.stat import Panel as StatPanel
from grafana_foundation_sdk.builders.table import Panel as TablePanel
from grafana_foundation_sdk.builders.timeseries import Panel as TimeseriesPanel

from daemonset.observability.frame import CURVE_TO_POD, TO_POD
from daemonset.observability.panels import RED, Look, Query, Text, Unit, graph, stat, table
from daemonset.observability.promql import grown, quic, share
from daemonset.observability.words import LEAKED, UNEXPECTED

_VERDICTS: Final = "nodeagent_egress_verdict_bytes_total"
_DESTINATIONS: Final = "nodeagent_egress_bytes_total"
_WINDOW: Final = "$__rate_interval"
_POD: Final = {"source_namespace": "Namespace", "source_pod": "Pod"}
_FLOW: Final = {"destination": "Destination", "protocol": "Protocol", "reason": "Reason"}


def _rate(selector: str, by: str, metric: str = _VERDICTS) -> str:
    return f"sum by ({by}) (rate({metric}{{{selector}}}[{_WINDOW}]))"


def bypassed_share(selector: str) -> StatPanel:
    """Return how much of the egress bypasses the sidecars."""
    return stat(
        Text("Egress that bypasses its sidecar", "By bytes, of all that pods send; the sidecars' own leg aside."),
        Query(share(_VERDICTS, selector, window=_WINDOW)),
        Look(Unit.SHARE, width=6, height=5),
    )


def leaking(selector: str) -> StatPanel:
    """Return how much leaks now."""
    return stat(
        Text("Leaks", "What bypasses sidecars although the policy says that it is intercepted. Right is 0."),
        Query(f'sum(rate({_VERDICTS}{{{selector}, reason=~"{LEAKED}"}}[{_WINDOW}])) or vector(0)'),
        Look(Unit.BYTES_PER_SECOND, width=6, height=5, limits={1e-9: RED}),
    )


def out_of_sync(selector: str) -> StatPanel:
    """Return how many pods have other rules than they should."""
    return stat(
        Text("Pods out of sync", "Their rules in the kernel are not those that were programmed. Right is 0."),
        Query(f"count(nodeagent_rules_in_sync{{{selector}}} == 0) or vector(0)"),
        Look(Unit.COUNT, width=6, height=5, limits={1: RED}),
    )


def by_verdict(selector: str) -> TimeseriesPanel:
    """Return what the sidecars see beside what they do not."""
    return graph(
        Text("Intercepted, bypassed", "IP bytes that pods send; `proxy` is the sidecars' own leg, sent on."),
        [Query(_rate(selector, "verdict"), "{{verdict}}")],
        Look(Unit.BYTES_PER_SECOND),
    )


def by_reason(selector: str) -> TimeseriesPanel:
    """Return why traffic bypasses."""
    return graph(
        Text("Bypass by reason", "As configured, or a leak: the reference of metrics says what each reason means."),
        [Query(_rate(f'{selector}, verdict="bypassed"', "reason"), "{{reason}}")],
        Look(Unit.BYTES_PER_SECOND, is_stacked=True),
    )


def leaks_by_pod(selector: str) -> TimeseriesPanel:
    """Return who leaks, when, and which kind of leak it is."""
    return graph(
        Text("Leaks by pod", "Flat at 0 is right. Click a curve for its pod."),
        [
            Query(
                _rate(f'{selector}, reason=~"{LEAKED}"', "cluster, source_namespace, source_pod, reason"),
                "{{source_namespace}}/{{source_pod}} {{reason}}",
            )
        ],
        Look(Unit.BYTES_PER_SECOND, link=CURVE_TO_POD),
    )


def unexpected(selector: str) -> TablePanel:
    """Return whose traffic bypassed although nobody configured that."""
    expr = f'increase({_VERDICTS}{{{selector}, verdict="bypassed", reason=~"{UNEXPECTED}"}}[$__range])'
    return table(
        Text("Unexpected bypass", "Leaks, and what could not be explained, in the time shown. Empty is right."),
        Query(f"sum by (source_namespace, source_pod, reason) ({expr}) > 0"),
        Look(Unit.BYTES, link=TO_POD),
        {**_POD, "reason": "Reason", "Value": "Bytes"},
    )


def top_destinations(selector: str, verdict: str = "bypassed") -> TablePanel:
    """Return where the most goes."""
    expr = f'increase({_DESTINATIONS}{{{selector}, verdict="{verdict}"}}[$__range])'
    return table(
        Text(f"Top {verdict} destinations", "In the time shown. `other` is what got no series of its own."),
        Query(f"topk(20, sum by (destination, protocol, reason) ({expr}) > 0)"),
        Look(Unit.BYTES),
        {**_FLOW, "Value": "Bytes"},
    )


def top_pods(selector: str) -> TablePanel:
    """Return who bypasses the most."""
    expr = f'increase({_VERDICTS}{{{selector}, verdict="bypassed"}}[$__range])'
    return table(
        Text("Top bypassing pods", "In the time shown. Click a row for its pod."),
        Query(f"topk(20, sum by (source_namespace, source_pod) ({expr}) > 0)"),
        Look(Unit.BYTES, link=TO_POD),
        {**_POD, "Value": "Bytes"},
    )


def udp_beside_tcp(selector: str) -> TimeseriesPanel:
    """Return what is most likely QUIC."""
    return graph(
        Text(
            "QUIC: UDP to destinations whose TCP is intercepted",
            "Rules redirect TCP. An app that moves to HTTP/3 leaves its sidecar for the same destination.",
        ),
        [
            Query(
                quic(f"{_DESTINATIONS}{{{selector}", _WINDOW),
                "{{source_namespace}}/{{source_pod}} → {{destination}}",
            )
        ],
        Look(Unit.BYTES_PER_SECOND, link=CURVE_TO_POD),
    )


def new_destinations(selector: str) -> TablePanel:
    """Return destinations that were not seen before the last hour."""
    series = f"{_DESTINATIONS}{{{selector}}}"
    of = "source_namespace, destination, verdict, reason"
    return table(
        Text("New destinations of the last hour", "Bytes so far. New for the namespace, whichever pod dialled."),
        Query(f"sum by ({of}) ({grown(series, '1h')}) > 0 unless sum by ({of}) ({series} offset 1h)"),
        Look(Unit.BYTES),
        {
            "source_namespace": "Namespace",
            "destination": "Destination",
            "verdict": "Verdict",
            "reason": "Reason",
            "Value": "Bytes",
        },
    )


def connections(selector: str) -> TimeseriesPanel:
    """Return how often pods connect, and which way."""
    by = _rate(selector, "verdict", "nodeagent_egress_connections_total")
    return graph(
        Text("New connections", "TCP connections, and UDP flows, by verdict."),
        [Query(by, "{{verdict}}")],
        Look(Unit.PER_SECOND),
    )
