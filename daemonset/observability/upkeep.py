"""Panels about the agents themselves: rules, room, cost.  *selector* says which."""

from typing import Final

from grafana_foundation_sdk.builders.stat import Panel as StatPanel
from grafana_foundation_sdk.builders.table import Panel as TablePanel
from grafana_foundation_sdk.builders.timeseries import Panel as TimeseriesPanel

from daemonset.observability.frame import CURVE_TO_NODE
from daemonset.observability.panels import ORANGE, RED, Look, Query, Text, Unit, graph, stat, table
from daemonset.observability.promql import dead_excludes
from daemonset.observability.words import JOB

_WINDOW: Final = "$__rate_interval"
_FULL: Final = {0.8: ORANGE, 0.95: RED}


def agents_down(selector: str) -> StatPanel:
    """Return how many agents do not answer."""
    return stat(
        Text("Agents that do not answer", "Rules and counters stay in the kernel meanwhile. Right is 0."),
        Query(f'count(up{{job="{JOB}", {selector}}} == 0) or vector(0)'),
        Look(Unit.COUNT, width=6, height=5, limits={1: RED}),
    )


def pods_by_state(selector: str) -> TimeseriesPanel:
    """Return how many pods are intercepted, and how many are not."""
    return graph(
        Text("Pods by state", "`refused` and `pending` run without interception; without a listener all is refused."),
        [
            Query(f"sum by (state) (nodeagent_pods{{{selector}}})", "{{state}}"),
            Query(f"sum(nodeagent_unanswered_pods{{{selector}}})", "of these, no sidecar listens"),
        ],
        Look(Unit.COUNT),
    )


def repairs(selector: str) -> TimeseriesPanel:
    """Return where rules have to be put right again and again."""
    return graph(
        Text("Drift repairs", "Rules that somebody changed, put right again. Repeated ones are a fight."),
        [
            Query(
                f"sum by (cluster, instance) (increase(nodeagent_drift_repairs_total{{{selector}}}[10m]))",
                "{{instance}}",
            )
        ],
        Look(Unit.COUNT, link=CURVE_TO_NODE),
    )


def time_to_intercept(selector: str) -> TimeseriesPanel:
    """Return how long pods run before their rules stand."""
    buckets = f"sum by (le) (rate(nodeagent_time_to_intercept_seconds_bucket{{{selector}}}[$__range]))"
    return graph(
        Text("Time to intercept", "From a pod's first sight to its rules, over the time shown."),
        [Query(f"histogram_quantile({q}, {buckets})", f"p{q * 100:.0f}") for q in (0.5, 0.99)],
        Look(Unit.SECONDS),
    )


def reconciling(selector: str) -> TimeseriesPanel:
    """Return how many visits to pods there are, and how they end."""
    return graph(
        Text("Visits to pods", "By result. Failed ones are tried again, ever more rarely."),
        [Query(f"sum by (result) (rate(nodeagent_reconciliations_total{{{selector}}}[{_WINDOW}]))", "{{result}}")],
        Look(Unit.PER_SECOND, is_stacked=True),
    )


def refused(selector: str) -> TimeseriesPanel:
    """Return what agents did not take."""
    return graph(
        Text("Refused", "Annotations and edits of the configuration: refused whole. Pods: for their safety."),
        [
            Query(
                f"sum by (reason) (increase(nodeagent_annotation_rejections_total{{{selector}}}[10m]))",
                "annotation: {{reason}}",
            ),
            Query(f"sum by (reason) (increase(nodeagent_refusals_total{{{selector}}}[10m]))", "pod: {{reason}}"),
            Query(
                f'sum by (result) (increase(nodeagent_config_reloads_total{{{selector}, result="rejected"}}[10m]))',
                "configuration",
            ),
        ],
        Look(Unit.COUNT, is_stacked=True),
    )


def room(selector: str) -> TimeseriesPanel:
    """Return how near the caps are."""
    by = "cluster, instance"
    series = (
        f"sum by ({by}) (nodeagent_egress_series{{{selector}}})"
        f" / sum by ({by}) (nodeagent_egress_series_limit{{{selector}}})"
    )
    fill = (
        f"sum by ({by}, map) (nodeagent_bpf_map_entries{{{selector}}})"
        f" / sum by ({by}, map) (nodeagent_bpf_map_capacity{{{selector}}})"
    )
    return graph(
        Text("Room left: series, maps", "Share in use. When full, destinations become `other`; totals stay exact."),
        [Query(series, "{{instance}} series"), Query(fill, "{{instance}} {{map}}")],
        Look(Unit.SHARE, limits=_FULL, link=CURVE_TO_NODE),
    )


def unattributed(selector: str) -> TimeseriesPanel:
    """Return what is not counted in full."""
    return graph(
        Text("Blind spots", "Bytes without a destination, updates that found no room, packets that passed unseen."),
        [
            Query(
                f"sum by (instance) (rate(nodeagent_egress_overflow_bytes_total{{{selector}}}[{_WINDOW}]))",
                "{{instance}} overflow B/s",
            ),
            Query(
                f"sum by (instance) (rate(nodeagent_bpf_lost_updates_total{{{selector}}}[{_WINDOW}]))",
                "{{instance}} lost updates/s",
            ),
            Query(
                f"sum by (instance) (rate(nodeagent_unseen_packets_total{{{selector}}}[{_WINDOW}]))",
                "{{instance}} unseen packets/s",
            ),
        ],
        Look(Unit.COUNT, link=CURVE_TO_NODE),
    )


def processor(selector: str) -> TimeseriesPanel:
    """Return what the agent costs: processor."""
    return graph(
        Text("CPU", "Cores, of the agent and of its programmer. Counting in the kernel is not in it."),
        _both("rate({metric}{{{selector}}}[{window}])", "cpu_seconds_total", selector),
        Look(Unit.CORES, width=8, link=CURVE_TO_NODE),
    )


def memory(selector: str) -> TimeseriesPanel:
    """Return what the agent costs: memory."""
    return graph(
        Text("Memory", "Resident, of the agent and of its programmer; pages that they share count in both."),
        _both("{metric}{{{selector}}}", "resident_memory_bytes", selector),
        Look(Unit.BYTES, width=8, link=CURVE_TO_NODE),
    )


def scraping(selector: str) -> TimeseriesPanel:
    """Return what the agent costs Prometheus."""
    return graph(
        Text("Scrape time", "As Prometheus measures it."),
        [Query(f'max by (cluster, instance) (scrape_duration_seconds{{job="{JOB}", {selector}}})', "{{instance}}")],
        Look(Unit.SECONDS, width=8, link=CURVE_TO_NODE),
    )


def versions(selector: str) -> TablePanel:
    """Return which agents run on which kernels."""
    return table(
        Text("Agents", "Version, kernel, and how rules are made."),
        Query(
            f"count by (version, kernel, backend) (nodeagent_build_info{{{selector}}}"
            f" * on (cluster, instance) group_right (version, kernel) nodeagent_backend_info{{{selector}}})"
        ),
        Look(Unit.COUNT),
        {"version": "Version", "kernel": "Kernel", "backend": "Backend", "Value": "Nodes"},
    )


def dead(selector: str) -> TablePanel:
    """Return excludes that nobody needs."""
    return table(
        Text(
            "Dead excludes",
            "Named ranges that pods exclude and that nobody dialled in the time shown: candidates for removal.",
        ),
        Query(
            dead_excludes(
                f"nodeagent_excluded_range_pods{{{selector}", f"nodeagent_egress_bytes_total{{{selector}", "$__range"
            )
        ),
        Look(Unit.COUNT),
        {"range": "Range", "Value": "Pods that exclude it"},
    )


def _both(form: str, metric: str, selector: str) -> list[Query]:
    names = {"agent": f"process_{metric}", "programmer": f"nodeagent_programmer_process_{metric}"}
    return [
        Query(
            "max by (cluster, instance) ("
            + form.format(metric=name, selector=f'job="{JOB}", {selector}', window=_WINDOW)
            + ")",
            f"{{{{instance}}}} {who}",
        )
        for who, name in names.items()
    ]
