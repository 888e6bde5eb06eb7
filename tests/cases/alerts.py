"""What each alert fires for, and when it clears: series, minute by minute, as ``promtool test rules`` writes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

POD = 'instance="node-a",source_namespace="shop",source_pod="cart-0"'
NODE = {"instance": "node-a"}
LABELS = {**NODE, "source_namespace": "shop", "source_pod": "cart-0"}
BURST = "0+6000x10 60000+0x60"
"""100 bytes a second for ten minutes, then nothing more."""
LONG = "0+6000x60 360000+0x60"


@dataclass(frozen=True)
class AlertCase:
    """The alert fires at *fires* with *labels*, and not at *quiet* nor at *clears*; all in minutes.

    *said* gives what templates that are not labels become.
    """

    id: str
    alert: str
    series: Mapping[str, str]
    labels: Mapping[str, str]
    fires: int
    clears: int
    quiet: int = 0
    said: Mapping[str, str] = field(default_factory=dict)


def verdict(reason: str, name: str = "bypassed") -> str:
    """Return the series of a pod's total."""
    return f'nodeagent_egress_verdict_bytes_total{{{POD},verdict="{name}",reason="{reason}"}}'


def destination(protocol: str, reason: str, name: str) -> str:
    """Return the series of one destination."""
    what = f'destination="203.0.113.10",protocol="{protocol}",verdict="{name}",reason="{reason}"'
    return f'nodeagent_egress_bytes_total{{job="nodeagent",{POD},{what}}}'


def agent(metric: str, labels: str = "") -> str:
    """Return a series of the agent's."""
    return f'nodeagent_{metric}{{instance="node-a"{labels and ","}{labels}}}'


_RATE = {"{{ $value | humanize1024 }}": "100"}
_NUMBER = "{{ $value | humanize }}"
_SHARE = "{{ $value | humanizePercentage }}"

CASES = (
    AlertCase(
        "rules that were flushed are a leak as soon as it lasts two minutes",
        "EgressBypassRulesMissing",
        {verdict("rules_missing"): BURST},
        {**LABELS, "reason": "rules_missing"},
        *(5, 20, 1),
        _RATE,
    ),
    AlertCase(
        "rules that stay out of sync",
        "RedirectRulesOutOfSync",
        {f"nodeagent_rules_in_sync{{{POD}}}": "1 0+0x20 1+0x20"},
        LABELS,
        *(8, 25, 3),
    ),
    *(
        AlertCase(
            f"bypass that nobody configured: {reason}",
            "UnexpectedEgressBypass",
            {verdict(reason): LONG},
            {**LABELS, "verdict": "bypassed", "reason": reason},
            *(15, 80, 5),
            _RATE,
        )
        for reason in ("conntrack_lost", "ipv6_unmanaged", "unknown")
    ),
    AlertCase(
        "an impostor",
        "EgressImpersonatesProxy",
        {verdict("impersonated_proxy"): BURST},
        {**LABELS, "reason": "impersonated_proxy"},
        *(8, 25, 3),
        _RATE,
    ),
    *(
        AlertCase(
            f"old connections that stay: {reason}",
            "PreexistingConnectionsBypass",
            {verdict(reason): LONG},
            {**LABELS, "reason": reason},
            *(40, 80, 20),
            _RATE,
        )
        for reason in ("before_rules", "preexisting")
    ),
    AlertCase(
        "a share that is twice as large as a day ago",
        "BypassShareJump",
        {
            verdict("excluded_cidr"): "0+6000x1440 8640000+1200000x60 80640000+6000x120",
            verdict("included", "intercepted"): "0+600000x1620",
        },
        {"source_namespace": "shop"},
        *(1470, 1560, 1430),
        {_SHARE: "66.67%"},
    ),
    AlertCase(
        "UDP to a destination whose TCP is intercepted",
        "QuicBypass",
        {destination("udp", "non_tcp", "bypassed"): LONG, destination("tcp", "included", "intercepted"): "5000+0x120"},
        {**LABELS, "destination": "203.0.113.10"},
        *(20, 90, 10),
        _RATE,
    ),
    AlertCase(
        "an agent that does not answer",
        "NodeagentDown",
        {'up{job="nodeagent",instance="node-a"}': "1 0+0x20 1+0x20"},
        {**NODE, "job": "nodeagent"},
        *(8, 25, 3),
        {'{{ or $labels.instance "any agent" }}': "node-a"},
    ),
    AlertCase(
        "no agent at all",
        "NodeagentDown",
        {'up{job="nodeagent",instance="node-a"}': "_x20 1+0x20"},
        {"job": "nodeagent"},
        *(8, 25, 3),
        {'{{ or $labels.instance "any agent" }}': "any agent"},
    ),
    AlertCase(
        "a ready node without an agent",
        "NodeagentMissingOnNode",
        {
            'kube_node_status_condition{node="node-b",condition="Ready",status="true"}': "1+0x60",
            'up{job="nodeagent",instance="node-a"}': "1+0x60",
            'up{job="nodeagent",instance="node-b"}': "_x30 1+0x30",
        },
        {"node": "node-b", "condition": "Ready", "status": "true"},
        *(20, 35, 10),
    ),
    AlertCase(
        "an agent that does not count",
        "NodeagentCountingDegraded",
        {
            agent("build_info", 'version="1"'): "1+0x60",
            agent("bpf_map_capacity", 'map="slots"'): "_x20 16384+0x30",
        },
        NODE,
        *(8, 25, 3),
    ),
    AlertCase(
        "packets that pass by",
        "NodeagentBlind",
        {agent("unseen_packets_total"): "0+60x20 1200+0x30"},
        NODE,
        *(10, 30, 4),
        {_NUMBER: "1"},
    ),
    AlertCase(
        "a state that cannot be kept", "NodeagentStateNotKept", {agent("state_kept"): "0+0x20 1+0x20"}, NODE, 16, 25, 10
    ),
    AlertCase(
        "series that run out",
        "NodeagentSeriesCapNear",
        {agent("egress_series"): "9000+0x20 5000+0x20", agent("egress_series_limit"): "10000+0x40"},
        NODE,
        *(16, 25, 10),
        {_SHARE: "90%"},
    ),
    AlertCase(
        "a map that runs full",
        "NodeagentBpfMapNearFull",
        {
            agent("bpf_map_entries", 'map="slots"'): "15500+0x20 9000+0x20",
            agent("bpf_map_capacity", 'map="slots"'): "16384+0x40",
        },
        {**NODE, "map": "slots"},
        *(8, 25, 3),
    ),
    AlertCase(
        "a map that was full, however empty it is now",
        "NodeagentBpfMapNearFull",
        {agent("bpf_lost_updates_total", 'map="slots"'): "0+0x5 7+0x40"},
        {**NODE, "map": "slots"},
        *(12, 30, 5),
    ),
    AlertCase(
        "rules that somebody changes again and again",
        "NodeagentDriftReturns",
        {agent("drift_repairs_total"): "0+1x10 10+0x60"},
        NODE,
        *(15, 60, 2),
        {_NUMBER: "10"},
    ),
    *(
        AlertCase(
            f"pods that stay {state}",
            alert,
            {agent("pods", f'state="{state}"'): "2+0x20 0+0x20"},
            NODE,
            *(16, 25, 10),
            {"{{ $value }}": "2"},
        )
        for state, alert in (("refused", "NodeagentRefusesPods"), ("pending", "NodeagentPodsPending"))
    ),
    AlertCase(
        "pods without a sidecar that listens",
        "NodeagentSidecarsSilent",
        {agent("unanswered_pods"): "0x5 2x15 0x30"},
        NODE,
        *(12, 25, 5),
        {"{{ $value }}": "2"},
    ),
    AlertCase(
        "an annotation that was refused",
        "NodeagentAnnotationsRejected",
        {agent("annotation_rejections_total", 'reason="syntax"'): "0+0x5 1+0x40"},
        {**NODE, "reason": "syntax"},
        *(7, 30, 5),
    ),
    AlertCase(
        "an edit of the configuration that was refused",
        "NodeagentConfigRejected",
        {agent("config_reloads_total", 'result="rejected"'): "0+0x5 1+0x40"},
        NODE,
        *(7, 30, 5),
    ),
    AlertCase(
        "a watch that is silent",
        "NodeagentWatchStale",
        {agent("watch_age_seconds"): "0+60x30 0+0x30"},
        NODE,
        *(25, 35, 15),
        {"{{ $value | humanizeDuration }}": "25m 0s"},
    ),
)

HEALTHY = {
    verdict("included", "intercepted"): "0+600000x1600",
    verdict("excluded_cidr"): "0+60000x1600",
    verdict("non_tcp"): "0+60x1600",
    verdict("proxy", "proxy"): "0+600000x1600",
    verdict("rules_missing"): "0+0x1600",
    destination("udp", "non_tcp", "bypassed"): "0+60x1600",
    f"nodeagent_rules_in_sync{{{POD}}}": "1+0x1600",
    'up{job="nodeagent",instance="node-a"}': "1+0x1600",
    'kube_node_status_condition{node="node-a",condition="Ready",status="true"}': "1+0x1600",
    agent("build_info", 'version="1"'): "1+0x1600",
    agent("bpf_map_capacity", 'map="slots"'): "16384+0x1600",
    agent("bpf_map_entries", 'map="slots"'): "1000+0x1600",
    agent("egress_series"): "100+0x1600",
    agent("egress_series_limit"): "10000+0x1600",
    agent("drift_repairs_total"): "3+0x1600",
    agent("state_kept"): "1+0x1600",
    agent("watch_age_seconds"): "20+0x1600",
    agent("pods", 'state="intercepted"'): "5+0x1600",
    agent("pods", 'state="refused"'): "0+0x1600",
}
"""A day and more of an agent with nothing to complain about: bypass as configured is none."""
