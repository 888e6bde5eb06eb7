"""Facts that dashboards and rules share: selectors, sets of reasons, and where things are."""

from typing import Final

from nodeagent.ledger import LEAKS
from nodeagent.model import Reason

JOB: Final = "nodeagent"
"""The label ``job`` of every agent's target; the PodMonitor sees to it."""

RUNBOOKS: Final = "https://nodeagent.io/runbooks"
"""Where docs/runbooks is published: whoever publishes it elsewhere changes this line and runs ``make dashboards``."""

LEAKED: Final = "|".join(sorted(LEAKS))
"""The reasons that are leaks, as a regular expression."""

UNEXPECTED: Final = "|".join(sorted({*LEAKS, Reason.UNKNOWN}))
"""What nobody configured: leaks, and what could not be explained."""

POD_LABELS: Final = "cluster, instance, source_namespace, source_pod"
"""What tells pods apart.  ``cluster`` is empty where one Prometheus watches one cluster; that is no obstacle."""

RATES: Final = "source_pod_verdict_reason:nodeagent_egress_verdict_bytes:rate5m"
LEAKS_RATE: Final = "source_pod_reason:nodeagent_egress_leaked_bytes:rate5m"
CLUSTER_SHARE: Final = "cluster:nodeagent_egress_bypassed:ratio_rate5m"
NAMESPACE_SHARE: Final = "source_namespace:nodeagent_egress_bypassed:ratio_rate5m"
IN_SYNC: Final = "instance:nodeagent_rules_in_sync:ratio"
SERIES_USE: Final = "instance:nodeagent_egress_series:ratio"
MAP_USE: Final = "instance_map:nodeagent_bpf_map_entries:ratio"
"""Recorded series, ``level:metric:operations``."""
