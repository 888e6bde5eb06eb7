"""The files of ``daemonset/`` that are generated."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from daemonset.observability.fleet import fleet
from daemonset.observability.manifests import dump, pod_monitor, prometheus_rule, rules
from daemonset.observability.node import node
from daemonset.observability.pod import pod

HOME: Final = Path(__file__).parents[1]


def generated() -> Mapping[str, str]:
    """Return text by path below ``daemonset/``."""
    return {
        "dashboards/fleet.json": _json(fleet()),
        "dashboards/node.json": _json(node()),
        "dashboards/pod.json": _json(pod()),
        "rules/nodeagent.yaml": dump(rules()),
        "monitoring/prometheusrule.yaml": dump(prometheus_rule()),
        "monitoring/podmonitor.yaml": dump(pod_monitor()),
    }


def _json(made: Dashboard) -> str:
    document = made.build()
    for number, panel in enumerate(document.panels or (), 1):
        panel.id_val = number  # links to a panel, and Grafana's own editing, need one
    return JSONEncoder(indent=2, sort_keys=True, ensure_ascii=False).encode(document) + "\n"
