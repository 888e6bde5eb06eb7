"""Recording rules: what dashboards of a whole cluster and alerts read often, computed once.

Rates by pod keep what tells pods apart and drop the scraper's labels, so that they survive an
agent's restart under another pod name.
"""

from typing import Final

from daemonset.observability.promql import share
from daemonset.observability.rule import Group, Record
from daemonset.observability.words import (
    CLUSTER_SHARE,
    IN_SYNC,
    LEAKED,
    LEAKS_RATE,
    MAP_USE,
    NAMESPACE_SHARE,
    POD_LABELS,
    RATES,
    SERIES_USE,
)

RECORDING: Final = Group(
    "nodeagent.recording",
    (
        Record(RATES, f"sum by ({POD_LABELS}, verdict, reason) (rate(nodeagent_egress_verdict_bytes_total[5m]))"),
        Record(LEAKS_RATE, f'sum by ({POD_LABELS}, reason) ({RATES}{{reason=~"{LEAKED}"}})'),
        Record(NAMESPACE_SHARE, share(RATES, "", "cluster, source_namespace")),
        Record(CLUSTER_SHARE, share(RATES, "", "cluster")),
        Record(IN_SYNC, "avg by (cluster, instance) (nodeagent_rules_in_sync)"),
        Record(
            SERIES_USE,
            "max by (cluster, instance) (nodeagent_egress_series)"
            " / max by (cluster, instance) (nodeagent_egress_series_limit)",
        ),
        Record(
            MAP_USE,
            "max by (cluster, instance, map) (nodeagent_bpf_map_entries)"
            " / max by (cluster, instance, map) (nodeagent_bpf_map_capacity)",
        ),
    ),
)
