"""YAML: the rules as a file for Prometheus, and as objects for a cluster with the Prometheus operator."""

from typing import Final

import yaml

from daemonset.observability.alerts import ALERTS
from daemonset.observability.recording import RECORDING
from daemonset.observability.rule import Json
from daemonset.observability.words import JOB

_HEADER: Final = "# Generated from daemonset/observability by `make dashboards`.\n"
_LABELS: Final = {"app.kubernetes.io/name": JOB, "app.kubernetes.io/part-of": JOB}
_WIDTH: Final = 120


def rules() -> Json:
    """Return all groups, as ``rule_files`` of Prometheus have them."""
    return {"groups": [group.document() for group in (RECORDING, *ALERTS)]}


def prometheus_rule() -> Json:
    """Return the same as an object that the operator hands to Prometheus."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": JOB, "labels": _LABELS},
        "spec": rules(),
    }


def pod_monitor() -> Json:
    """Return how Prometheus finds the agents: each is a target, called by its node.

    The target's own labels would begin new series at each rollout: ``instance`` is the node's
    name, and the agent's pod and container are dropped.
    """
    node = {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "instance"}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {"name": JOB, "labels": _LABELS},
        "spec": {
            "jobLabel": "app.kubernetes.io/name",
            "selector": {"matchLabels": {"app.kubernetes.io/name": JOB}},
            "podMetricsEndpoints": [
                {
                    "port": "metrics",
                    "path": "/metrics",
                    "interval": "30s",
                    "scrapeTimeout": "10s",
                    "relabelings": [node, {"action": "labeldrop", "regex": "pod|container|endpoint"}],
                }
            ],
        },
    }


def dump(document: Json) -> str:
    """Return *document* as YAML, keys in the order in which people read them."""
    return _HEADER + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=_WIDTH, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes each list indented below its key, and no anchors: objects are shared here, not there."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002  # its signature
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  # its signature
        return True
