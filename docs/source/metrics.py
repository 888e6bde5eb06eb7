"""``metrics.md``: every family that ``/metrics`` may show, as it is rendered."""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from prometheus_client import ProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from docs.source.markdown import code, page, table
from nodeagent.ledger import Account, SeriesValue, Total
from nodeagent.metrics import MapHealth, MetricsView
from nodeagent.metrics.exposition import render
from nodeagent.model import Counters, PodName, Reason, Verdict

CONDITIONAL: Final[Mapping[str, str]] = {
    "nodeagent_egress_packets_total": "off by default",
    "nodeagent_egress_received_bytes_total": "off by default",
    "nodeagent_unseen_packets_total": "only while a pod's wire is guarded: unknown is not none",
    "nodeagent_watch_age_seconds": "only with `--kubernetes`",
}
"""Families that are not always there, and when they are."""


class Family(NamedTuple):
    """One family, by the name of its samples."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def families() -> list[Family]:
    """Return all families, of an agent that has something to say of each."""
    _, body = render(_everything())
    return [_family(metric) for metric in text_string_to_metric_families(body.decode())]


def _family(metric: object) -> Family:
    name, kind, text = (getattr(metric, field) for field in ("name", "type", "documentation"))
    labels = {label: None for sample in getattr(metric, "samples", ()) for label in sample.labels if label != "le"}
    return Family(f"{name}_total" if kind == "counter" else name, kind, tuple(labels), text)


def _everything() -> MetricsView:
    account = Account(Verdict.INTERCEPTED, Reason.INCLUDED, "tcp")
    pod = PodName("shop", "web", "uid")
    processes = [
        *ProcessCollector(registry=None).collect(),
        *ProcessCollector("nodeagent_programmer", registry=None).collect(),
    ]
    return MetricsView(
        version="1",
        kernel="6.1",
        backends=("nft",),
        series=[SeriesValue(pod.namespace, pod.name, "payments-db", account, Counters())],
        totals=[Total(pod.namespace, pod.name, account, Counters())],
        pods=[pod],
        detailed=True,
        maps=[MapHealth("slots", 1, 2, 0)],
        in_sync={pod: True},
        reconciliations={"unchanged": 1},
        watch_age_seconds=1.0,
        unseen_packets=0,
        troubles={"counting": False},
        excluded_ranges={"payments-db": 1},
        processes=processes,
    )


def metrics() -> str:
    """Return the page."""
    return page("Metrics", _INTRODUCTION, *_sections())


def _sections() -> Iterator[str]:
    left = {family.name: family for family in families()}
    for title, prefixes in _SECTIONS.items():
        mine = [left.pop(name) for name in list(left) if name.startswith(prefixes)]
        yield f"## {title}"
        yield table(("metric", "type", "labels", "means"), map(_row, mine))
    assert not left, f"no section of docs/source/metrics.py has {', '.join(left)}"  # noqa: S101


_SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "What left the pods": ("nodeagent_egress_", "nodeagent_unseen_"),
    "Interception": (
        *("nodeagent_rules_", "nodeagent_reconciliation", "nodeagent_drift_", "nodeagent_time_to_", "nodeagent_late_"),
        *("nodeagent_pods", "nodeagent_excluded_", "nodeagent_refusals", "nodeagent_annotation_", "nodeagent_backend_"),
    ),
    "The agent itself": ("nodeagent_", "process_"),
}


def _row(family: Family) -> tuple[str, ...]:
    note = CONDITIONAL.get(family.name)
    return (
        code(family.name),
        family.kind,
        ", ".join(map(code, family.labels)),
        family.help.rstrip(".") + (f"; {note}" if note else ""),
    )


_INTRODUCTION = """
What `/metrics` of the open listener shows, in Prometheus' text format or as OpenMetrics, gzip if asked. Dashboards, recording rules and alerts for it are in [`daemonset/`](../../daemonset/README.md); each alert has a [runbook](../runbooks/README.md).

`source_namespace` and `source_pod` are the pod whose traffic it is; the scraper's own `namespace` and `pod` are the agent's. `destination` is a named range of the [configuration](configuration.md), else a Service's name (`kubernetes.serviceRanges`), else the address if the cap allows, else `other`.
`verdict` and `reason` are those of [concepts](../concepts.md#reasons). A series that was shown once only grows, over restarts of the agent too, and goes ten minutes after its pod.
A family whose name begins with `nodeagent_programmer_` or `process_` is what one of the agent's two processes costs.
"""
