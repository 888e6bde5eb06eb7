"""Alerts.  Each has a page of its name in docs/runbooks, which says what to do.

No threshold is a guess about somebody's traffic: leaks are wrong at any rate, and a share is
compared with itself a day before.
"""

from typing import Final

from daemonset.observability.promql import quic
from daemonset.observability.rule import Alert, Group, Severity
from daemonset.observability.words import JOB, LEAKS_RATE, MAP_USE, NAMESPACE_SHARE, POD_LABELS, RATES, SERIES_USE

_POD: Final = "{{ $labels.source_namespace }}/{{ $labels.source_pod }}"
_NODE: Final = "{{ $labels.instance }}"
_RATE: Final = "{{ $value | humanize1024 }}B/s"

EGRESS: Final = Group(
    "nodeagent.egress",
    (
        Alert(
            "EgressBypassRulesMissing",
            Severity.CRITICAL,
            f'{LEAKS_RATE}{{reason="rules_missing"}} > 0',
            "2m",
            f"{_POD} sends past its sidecar: its rules are missing or overtaken",
            f"{_RATE} leave {_POD} on {_NODE} directly although its policy says that the sidecar intercepts them.",
        ),
        Alert(
            "RedirectRulesOutOfSync",
            Severity.CRITICAL,
            f"min by ({POD_LABELS}) (last_over_time(nodeagent_rules_in_sync[2m])) == 0",
            "5m",
            f"the rules of {_POD} are not those that were programmed",
            f"The agent on {_NODE} finds other rules in {_POD} than it wrote, and repairs fail or do not last.",
        ),
        Alert(
            "UnexpectedEgressBypass",
            Severity.WARNING,
            f'{RATES}{{verdict="bypassed", reason=~"conntrack_lost|ipv6_unmanaged|unknown"}} > 0',
            "10m",
            f"{_POD} sends past its sidecar: {{{{ $labels.reason }}}}",
            f"{_RATE} leave {_POD} on {_NODE} directly, and nobody configured that. Reason: {{{{ $labels.reason }}}}.",
        ),
        Alert(
            "EgressImpersonatesProxy",
            Severity.WARNING,
            f'{LEAKS_RATE}{{reason="impersonated_proxy"}} > 0',
            "5m",
            f"a process in {_POD} passes for the sidecar",
            f"{_RATE} leave {_POD} on {_NODE} under the sidecar's uid or gid, but not from the sidecar's container.",
        ),
        Alert(
            "PreexistingConnectionsBypass",
            Severity.INFO,
            f'{LEAKS_RATE}{{reason=~"before_rules|preexisting"}} > 0',
            "30m",
            f"{_POD} still uses connections that are older than its rules",
            f"{_RATE} leave {_POD} on {_NODE} in connections that began before its rules. They end with the pod.",
        ),
        Alert(
            "BypassShareJump",
            Severity.WARNING,
            f"{NAMESPACE_SHARE} > 2 * avg_over_time({NAMESPACE_SHARE}[1h] offset 23h30m)"
            f" and {NAMESPACE_SHARE} > 0.1"
            f' and sum by (cluster, source_namespace) ({RATES}{{verdict="bypassed"}}) > 10000',
            "15m",
            "namespace {{ $labels.source_namespace }} bypasses its sidecars twice as much as a day ago",
            "{{ $value | humanizePercentage }} of what its pods send bypasses their sidecars.",
        ),
        Alert(
            "QuicBypass",
            Severity.WARNING,
            quic(f'nodeagent_egress_bytes_total{{job="{JOB}"', "10m"),
            "15m",
            f"{_POD} sends UDP to {{{{ $labels.destination }}}}, whose TCP its sidecar intercepts",
            f"{_RATE} of UDP, most likely QUIC, leave {_POD} on {_NODE} directly: rules redirect TCP only.",
        ),
    ),
)

AGENT: Final = Group(
    "nodeagent.agent",
    (
        Alert(
            "NodeagentDown",
            Severity.CRITICAL,
            f'up{{job="{JOB}"}} == 0 or absent(up{{job="{JOB}"}})',
            "5m",
            'no metrics from {{ or $labels.instance "any agent" }}',
            "Rules and counters stay in the kernel. New pods are not programmed, and drift is not repaired.",
        ),
        Alert(
            "NodeagentMissingOnNode",
            Severity.CRITICAL,
            'kube_node_status_condition{condition="Ready", status="true"} == 1'
            f' unless on (cluster, node) label_replace(up{{job="{JOB}"}}, "node", "$1", "instance", "(.*)")',
            "15m",
            "no agent on the ready node {{ $labels.node }}",
            "Pods on {{ $labels.node }} are neither programmed nor counted.",
        ),
        Alert(
            "NodeagentCountingDegraded",
            Severity.WARNING,
            "max by (cluster, instance) (nodeagent_build_info)"
            " unless on (cluster, instance) (nodeagent_bpf_map_capacity > 0)",
            "5m",
            f"the agent {_NODE} does not count",
            "Interception goes on. What bypasses the sidecars of this node is not seen, and no alert can say so.",
        ),
        Alert(
            "NodeagentBlind",
            Severity.WARNING,
            "sum by (cluster, instance) (rate(nodeagent_unseen_packets_total[5m])) > 0",
            "5m",
            f"packets leave pods of {_NODE} unseen",
            "{{ $value | humanize }} packets a second pass by the point of counting: raw sockets, most likely.",
        ),
        Alert(
            "NodeagentStateNotKept",
            Severity.WARNING,
            "min by (cluster, instance) (nodeagent_state_kept) == 0",
            "15m",
            f"the agent {_NODE} cannot keep its state",
            "Counters would begin anew after a restart, and old connections would lose their reasons.",
        ),
        Alert(
            "NodeagentSeriesCapNear",
            Severity.WARNING,
            f"{SERIES_USE} > 0.8",
            "15m",
            f"the agent {_NODE} uses {{{{ $value | humanizePercentage }}}} of its series",
            "Beyond the limit, destinations are counted as `other`. Totals by verdict and reason stay exact.",
        ),
        Alert(
            "NodeagentBpfMapNearFull",
            Severity.WARNING,
            f"{MAP_USE} > 0.9 or sum by (cluster, instance, map) (increase(nodeagent_bpf_lost_updates_total[10m])) > 0",
            "5m",
            f"the map {{{{ $labels.map }}}} of {_NODE} is nearly full, or was",
            "New flows are counted in their pod's overflow: totals stay exact, destinations and reasons are lost.",
        ),
        Alert(
            "NodeagentDriftReturns",
            Severity.WARNING,
            "sum by (cluster, instance) (increase(nodeagent_drift_repairs_total[30m])) > 3",
            "5m",
            f"somebody keeps changing rules on {_NODE}",
            "{{ $value | humanize }} repairs in 30 minutes: another program or a pod undoes what the agent writes.",
        ),
        Alert(
            "NodeagentRefusesPods",
            Severity.WARNING,
            'sum by (cluster, instance) (nodeagent_pods{state="refused"}) > 0',
            "15m",
            f"{{{{ $value }}}} pods of {_NODE} are refused",
            "They are not intercepted. `nodeagent status` on the node says why, for each.",
        ),
        Alert(
            "NodeagentPodsPending",
            Severity.WARNING,
            'sum by (cluster, instance) (nodeagent_pods{state="pending"}) > 0',
            "15m",
            f"{{{{ $value }}}} pods of {_NODE} wait for their rules",
            "They run without interception. `nodeagent status` on the node says what they wait for.",
        ),
        Alert(
            "NodeagentSidecarsSilent",
            Severity.WARNING,
            "sum by (cluster, instance) (nodeagent_unanswered_pods) > 0",
            "5m",
            f"no sidecar listens in {{{{ $value }}}} pods of {_NODE}",
            "Their connections are sent to a port where nobody listens, and refused. `nodeagent status` names them.",
        ),
        Alert(
            "NodeagentAnnotationsRejected",
            Severity.WARNING,
            "sum by (cluster, instance, reason) (increase(nodeagent_annotation_rejections_total[15m])) > 0",
            "0m",
            f"annotations were refused on {_NODE}: {{{{ $labels.reason }}}}",
            "A refused value counts as absent, as a whole; a running pod keeps the rules that it has.",
        ),
        Alert(
            "NodeagentConfigRejected",
            Severity.WARNING,
            'sum by (cluster, instance) (increase(nodeagent_config_reloads_total{result="rejected"}[15m])) > 0',
            "0m",
            f"the agent {_NODE} refused an edit of its configuration",
            "The last good configuration stays in force. `/readyz` and the log name key and value.",
        ),
        Alert(
            "NodeagentWatchStale",
            Severity.WARNING,
            "max by (cluster, instance) (nodeagent_watch_age_seconds) > 900",
            "5m",
            f"the agent {_NODE} has not heard of pods for {{{{ $value | humanizeDuration }}}}",
            "Known pods stay programmed. New pods and new annotations are not seen.",
        ),
    ),
)

ALERTS: Final = (EGRESS, AGENT)
