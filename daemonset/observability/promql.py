"""PromQL that is written in more than one place."""

from typing import Final

EGRESS: Final = 'cluster=~"$cluster", source_namespace=~"$namespace", source_pod=~"$pod"'
"""Matches what a dashboard's variables select, in metrics that have a pod."""

AGENTS: Final = 'cluster=~"$cluster"'
"""Matches the selected clusters, in metrics that have no pod."""

NODE: Final = 'cluster=~"$cluster", instance="$node"'
"""Matches the agent of the selected node."""


def share(metric: str, selector: str, by: str = "", window: str = "") -> str:
    """Return bypassed by bypassed and intercepted; the sidecars' own leg is neither.

    *metric* is a rate already, or a counter, of which the rate over *window* is taken.

    >>> share("m", "", "c")
    'sum by (c) (m{verdict="bypassed"}) / sum by (c) (m{verdict=~"bypassed|intercepted"})'
    >>> share("m", 'a="b"', window="5m")
    'sum (rate(m{a="b", verdict="bypassed"}[5m])) / sum (rate(m{a="b", verdict=~"bypassed|intercepted"}[5m]))'
    """
    grouped = f"sum by ({by})" if by else "sum"
    head = f"{selector}, " if selector else ""
    parts = [f"{metric}{{{head}{verdicts}}}" for verdicts in ('verdict="bypassed"', 'verdict=~"bypassed|intercepted"')]
    if window:
        parts = [f"rate({part}[{window}])" for part in parts]
    return " / ".join(f"{grouped} ({part})" for part in parts)


def grown(series: str, window: str) -> str:
    """Return by how much counters grew in *window*, those that began in it included: ``increase`` misses their birth.

    Counters that ended in it are left out.

    >>> grown("m{}", "1h")
    '(m{} - (m{} offset 1h) or m{})'
    """
    return f"({series} - ({series} offset {window}) or {series})"


def quic(series: str, window: str) -> str:
    """Return the rate of UDP that bypassed the sidecar to destinations whose TCP it intercepts, by pod and destination.

    Ports are not in metrics.  What an app moves from TCP to UDP, to the same destination, is QUIC.
    ``other`` stands for many destinations and says nothing.

    *series* is the metric with the selector begun: ``metric{...``, not closed.
    """
    same = "cluster, instance, source_namespace, source_pod, destination"
    udp = f'{series}, protocol="udp", reason="non_tcp", destination!="other"}}'
    tcp = f'{series}, protocol="tcp", verdict="intercepted"}}'
    return f"sum by ({same}) (rate({udp}[{window}])) > 0 and on ({same}) (sum by ({same}) ({tcp}) > 0)"


def dead_excludes(ranges: str, bytes_: str, window: str) -> str:
    """Return the named ranges that pods exclude and that nobody dialled in *window*; the value is how many pods do.

    *ranges* and *bytes_* are the two metrics with the selector begun: ``metric{...``, not closed.
    """
    hits = f'{bytes_}, reason="excluded_cidr"}}'
    named = f'label_replace({grown(hits, window)}, "range", "$1", "destination", "(.*)")'
    return (
        f"sum by (cluster, range) ({ranges}}}) > 0 unless on (cluster, range) (sum by (cluster, range) ({named}) > 0)"
    )
