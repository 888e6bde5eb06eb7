"""The Helm chart: what each switch renders, and what the schema refuses, in Helm's own words."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemonset.observability.files import generated
from daemonset.packaging.manifests import HOME, ChartError, manifests
from daemonset.packaging.schema import CHART
from nodeagent.cli.capabilities import CAPABILITIES
from nodeagent.policy import DEFAULT, read_configuration
from tests.chart.conftest import Objects, Render

pytestmark = pytest.mark.chart

DAEMONSET = ("DaemonSet", "nodeagent")
EVERYTHING = {
    *((kind, "nodeagent") for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap")),
    *((kind, "nodeagent") for kind in ("DaemonSet", "NetworkPolicy", "PriorityClass")),
}


def pod_of(objects: Objects) -> dict[str, Any]:
    found: dict[str, Any] = objects[DAEMONSET]["spec"]["template"]["spec"]
    return found


def containers_of(objects: Objects) -> dict[str, dict[str, Any]]:
    return {container["name"]: container for container in pod_of(objects)["containers"]}


# ── as it comes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_helm_finds_nothing_to_complain_about(helm: Path) -> None:
    done = subprocess.run([helm, "lint", "--strict", CHART], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 chart(s) linted, 0 chart(s) failed" in done.stdout


def test_the_plain_manifests_are_what_the_chart_renders(helm: Path) -> None:
    committed = {path.name: path.read_text() for path in HOME.iterdir()}
    assert committed == manifests(helm), "run `make manifests`"


def test_a_packaged_chart_holds_dashboards_and_rules(helm: Path, tmp_path: Path) -> None:
    subprocess.run([helm, "package", CHART, "--destination", tmp_path], capture_output=True, check=True)
    (archive,) = tmp_path.iterdir()
    switches = ("--set=monitoring.dashboards.enabled=true", "--set=monitoring.prometheusRule.enabled=true")
    done = subprocess.run([helm, "template", "x", archive, *switches], capture_output=True, text=True, check=True)
    kinds = [found["kind"] for found in yaml.safe_load_all(done.stdout) if found]
    assert kinds.count("ConfigMap") == 1 + len([name for name in generated() if name.startswith("dashboards/")])
    assert "PrometheusRule" in kinds


def test_by_default_it_holds_what_an_agent_needs_and_no_more(rendered: Render) -> None:
    assert rendered().keys() == EVERYTHING


def test_the_agent_may_list_and_watch_pods_and_write_events_and_nothing_else(rendered: Render) -> None:
    assert rendered()["ClusterRole", "nodeagent"]["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
    ]


def test_the_agent_holds_the_token_and_no_capability_and_the_programmer_the_opposite(rendered: Render) -> None:
    pod, containers = pod_of(rendered()), containers_of(rendered())
    assert pod["automountServiceAccountToken"] is False
    holders = {
        name for name, found in containers.items() for mount in found["volumeMounts"] if mount["name"] == "token"
    }
    assert holders == {"agent"}
    assert containers["agent"]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert containers["programmer"]["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": [*CAPABILITIES]}
    for found in containers.values():
        context = found["securityContext"]
        assert (context["privileged"], context["readOnlyRootFilesystem"]) == (False, True)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_pod_has_a_network_and_processes_of_its_own(rendered: Render) -> None:
    pod = pod_of(rendered())
    assert (pod["hostNetwork"], pod["hostPID"]) == (False, False)


def test_it_runs_on_every_node_whatever_its_taints(rendered: Render) -> None:
    pod = pod_of(rendered())
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert pod["priorityClassName"] == "nodeagent"


def test_probes_ask_the_agent_itself(rendered: Render) -> None:
    agent = containers_of(rendered())["agent"]
    assert {port["name"]: port["containerPort"] for port in agent["ports"]} == {"metrics": 9640}
    asked = {name: agent[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {name: found["path"] for name, found in asked.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    assert {found["port"] for found in asked.values()} == {"metrics"}


def test_two_agents_are_never_on_one_node(rendered: Render) -> None:
    strategy = rendered()[DAEMONSET]["spec"]["updateStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%", "maxSurge": 0}}


def test_the_configuration_is_mounted_as_a_folder_so_that_edits_arrive(rendered: Render) -> None:
    mounts = containers_of(rendered())["agent"]["volumeMounts"]
    (mount,) = (mount for mount in mounts if mount["name"] == "config")
    assert mount == {"name": "config", "mountPath": "/etc/nodeagent", "readOnly": True}


def test_without_values_the_agents_own_defaults_hold(rendered: Render) -> None:
    text = rendered()["ConfigMap", "nodeagent"]["data"]["config.yaml"]
    assert read_configuration(text).settings == DEFAULT.settings


# ── switches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_configuration_arrives_as_it_was_given(rendered: Render) -> None:
    objects = rendered("config.mode=observe", "config.proxy.port=4140", "config.ranges.db={10.20.0.0/16,2001:db8::/32}")
    found = read_configuration(objects["ConfigMap", "nodeagent"]["data"]["config.yaml"])
    assert (found.policy.mode, found.policy.proxy_port, len(found.ranges["db"])) == ("observe", 4140, 2)


def test_only_another_listener_restarts_the_agent(rendered: Render) -> None:
    def template(*switches: str) -> dict[str, Any]:
        found: dict[str, Any] = rendered(*switches)[DAEMONSET]["spec"]["template"]
        return found

    assert template("config.mode=observe") == template()
    assert template("config.http.metrics=0.0.0.0:9700") != template()


def test_the_agents_own_pod_has_none_of_our_annotations(rendered: Render) -> None:
    """It would be told that it is misspelt, by an Event."""
    annotations = rendered()[DAEMONSET]["spec"]["template"]["metadata"]["annotations"]
    assert not [key for key in annotations if key.startswith("nodeagent.io/")]


def test_another_port_is_told_to_everybody(rendered: Render) -> None:
    objects = rendered("config.http.metrics=0.0.0.0:9700")
    assert containers_of(objects)["agent"]["ports"] == [{"name": "metrics", "containerPort": 9700}]
    ingress = objects["NetworkPolicy", "nodeagent"]["spec"]["ingress"]
    assert ingress == [{"ports": [{"protocol": protocol, "port": 9700}]} for protocol in ("TCP", "UDP")]


def test_only_who_wants_names_of_services_may_ask_for_them(rendered: Render) -> None:
    rules = rendered("config.kubernetes.serviceRanges={10.96.0.0/12}")["ClusterRole", "nodeagent"]["rules"]
    assert rules[2:] == [{"apiGroups": ["networking.k8s.io"], "resources": ["ipaddresses"], "verbs": ["get"]}]


def test_without_events_nothing_may_be_written_at_all(rendered: Render) -> None:
    rules = rendered("config.kubernetes.events=false")["ClusterRole", "nodeagent"]["rules"]
    assert rules == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]


DIGEST = "sha256:" + "0" * 64
IMAGES = {
    "the chart's version": ((), "nodeagent:0.1.0.dev0"),
    "a tag": (("image.tag=v9", "image.repository=r.example/n"), "r.example/n:v9"),
    "a digest before a tag": ((f"image.digest={DIGEST}", "image.tag=v9"), f"nodeagent@{DIGEST}"),
}


@pytest.mark.parametrize(("switches", "image"), IMAGES.values(), ids=IMAGES.keys())
def test_the_image_is(rendered: Render, switches: tuple[str, ...], image: str) -> None:
    assert {found["image"] for found in containers_of(rendered(*switches)).values()} == {image}


TEMPLATE = {
    "imagePullSecrets[0].name=registry": ("imagePullSecrets", [{"name": "registry"}]),
    "nodeSelector.pool=mesh": ("nodeSelector", {"kubernetes.io/os": "linux", "pool": "mesh"}),
    "tolerations=null": ("tolerations", None),
    "affinity.podAffinity.x=y": ("affinity", {"podAffinity": {"x": "y"}}),
    "priorityClass.name=system-node-critical": ("priorityClassName", "system-node-critical"),
}


@pytest.mark.parametrize(("switch", "field", "value"), [(key, *value) for key, value in TEMPLATE.items()])
def test_a_value_of_the_pod(rendered: Render, switch: str, field: str, value: object) -> None:
    assert pod_of(rendered(switch)).get(field) == value


def test_a_priority_class_of_ones_own_is_not_made(rendered: Render) -> None:
    objects = rendered("priorityClass.create=false", "priorityClass.name=mine")
    assert objects.keys() == EVERYTHING - {("PriorityClass", "nodeagent")}
    assert pod_of(objects)["priorityClassName"] == "mine"


def test_labels_and_annotations_reach_pod_and_account(rendered: Render) -> None:
    objects = rendered("podLabels.team=mesh", "podAnnotations.a=b", "serviceAccount.annotations.c=d")
    metadata = objects[DAEMONSET]["spec"]["template"]["metadata"]
    assert (metadata["labels"]["team"], metadata["annotations"]["a"]) == ("mesh", "b")
    assert objects["ServiceAccount", "nodeagent"]["metadata"]["annotations"] == {"c": "d"}


def test_the_pods_labels_hold_the_selector(rendered: Render) -> None:
    spec = rendered("podLabels.team=mesh")[DAEMONSET]["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_paths_of_another_node(rendered: Render) -> None:
    objects = rendered(
        *("paths.cgroup=/cgroup", "paths.state=/var/run/mine", "paths.bpffs=/bpf", "paths.netns=/netns"),
        "paths.nri=/nri",
    )
    paths = {
        volume["name"]: volume["hostPath"]["path"] for volume in pod_of(objects)["volumes"] if "hostPath" in volume
    }
    assert paths == {
        "proc": "/proc",
        "cgroup": "/cgroup",
        "bpffs": "/bpf",
        "state": "/var/run/mine",
        "agent-state": "/var/run/mine/agent",
        "netns": "/netns",
        "nri": "/nri",
    }


def test_whoever_has_no_privilege_cannot_get_one(rendered: Render) -> None:
    for objects in (rendered(), rendered("uninstall.enabled=true")):
        pod = pod_of(objects)
        for found in (*pod["initContainers"], *pod["containers"]):
            if found["name"] not in ("programmer", "uninstall"):
                context = found["securityContext"]
                assert (context["allowPrivilegeEscalation"], context["capabilities"]) == (False, {"drop": ["ALL"]})


def test_only_the_programmer_sees_the_nodes_processes_and_programs(rendered: Render) -> None:
    mounts = {
        name: {mount["name"] for mount in found["volumeMounts"]} for name, found in containers_of(rendered()).items()
    }
    assert mounts["agent"] == {"config", "token", "seam", "agent-state", "cgroup", "netns", "agent-tmp"}
    assert mounts["programmer"] == {"seam", "nri", "proc", "cgroup", "netns", "bpffs", "state", "tmp"}
    (seam,) = (mount for mount in containers_of(rendered())["agent"]["volumeMounts"] if mount["name"] == "seam")
    assert seam["readOnly"]


def test_the_agent_can_write_to_nothing_that_the_programmer_works_with(rendered: Render) -> None:
    """A folder that both may write to is one in which the agent could exchange what the programmer has just made."""
    agent, programmer = (containers_of(rendered())[name]["volumeMounts"] for name in ("agent", "programmer"))
    writable = {mount["name"] for mount in agent if not mount.get("readOnly")}
    assert writable == {"agent-state", "agent-tmp"}
    assert not writable & {mount["name"] for mount in programmer}


def test_resources_and_confinement_of_the_two_containers(rendered: Render) -> None:
    objects = rendered(
        "agent.resources.limits.memory=99Mi",
        "programmer.resources.limits.memory=98Mi",
        "programmer.appArmorProfile=",
        "programmer.seLinuxOptions.type=spc_t",
    )
    agent, programmer = (containers_of(objects)[name] for name in ("agent", "programmer"))
    assert (agent["resources"]["limits"], programmer["resources"]["limits"]) == ({"memory": "99Mi"}, {"memory": "98Mi"})
    assert "appArmorProfile" not in programmer["securityContext"]
    assert programmer["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}
    assert containers_of(rendered())["programmer"]["securityContext"]["appArmorProfile"] == {"type": "Unconfined"}


def test_an_old_kernel_may_need_one_capability_more(rendered: Render) -> None:
    objects = rendered("programmer.extraCapabilities={SYS_RESOURCE}")
    added = containers_of(objects)["programmer"]["securityContext"]["capabilities"]["add"]
    assert added == [*CAPABILITIES, "SYS_RESOURCE"]


def test_the_log_level_reaches_both(rendered: Render) -> None:
    for found in containers_of(rendered("logLevel=debug")).values():
        assert "--log-level=debug" in found["args"]


def test_the_network_policy_can_be_left_out(rendered: Render) -> None:
    assert rendered("networkPolicy.enabled=false").keys() == EVERYTHING - {("NetworkPolicy", "nodeagent")}


def test_the_network_policy_names_who_scrapes_and_where_the_api_server_is(rendered: Render) -> None:
    objects = rendered(
        "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring",
        "networkPolicy.apiServer={10.0.0.1/32,2001:db8::1/128}",
        "networkPolicy.apiServerPorts={8443}",
    )
    spec = objects["NetworkPolicy", "nodeagent"]["spec"]
    assert spec["ingress"][0]["from"] == [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]
    assert [rule.get("from") is None for rule in spec["ingress"]] == [False, True], "any pod may wait for its rules"
    (egress,) = spec["egress"]
    assert egress["ports"] == [{"protocol": "TCP", "port": 8443}]
    assert [peer["ipBlock"]["cidr"] for peer in egress["to"]] == ["10.0.0.1/32", "2001:db8::1/128"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]


def test_the_pod_monitor_is_the_one_of_the_dashboards(rendered: Render) -> None:
    on = "monitoring.podMonitor.enabled=true"
    found = rendered(on, "monitoring.podMonitor.interval=15s", "monitoring.podMonitor.labels.release=x")
    monitor, made = found["PodMonitor", "nodeagent"], yaml.safe_load(generated()["monitoring/podmonitor.yaml"])
    assert monitor["metadata"]["labels"]["release"] == "x"
    assert monitor["spec"]["podMetricsEndpoints"][0].pop("interval") == "15s"
    assert made["spec"]["podMetricsEndpoints"][0].pop("interval") == "30s"
    assert monitor["spec"] == made["spec"]


def test_the_rules_are_those_of_the_dashboards(rendered: Render) -> None:
    found = rendered("monitoring.prometheusRule.enabled=true", "monitoring.prometheusRule.labels.release=x")
    rule = found["PrometheusRule", "nodeagent"]
    assert rule["metadata"]["labels"]["release"] == "x"
    assert rule["spec"] == yaml.safe_load(generated()["monitoring/prometheusrule.yaml"])["spec"]


def test_each_dashboard_is_a_config_map(rendered: Render) -> None:
    found = rendered("monitoring.dashboards.enabled=true", "monitoring.dashboards.annotations.folder=mesh")
    for path, text in generated().items():
        if path.startswith("dashboards/"):
            name = Path(path).stem
            made = found["ConfigMap", f"nodeagent-dashboard-{name}"]
            assert made["data"] == {f"nodeagent-{name}.json": text}
            assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
            assert made["metadata"]["annotations"] == {"folder": "mesh"}


def test_the_namespace_has_the_labels_of_pod_security(rendered: Render) -> None:
    labels = rendered("namespace.create=true")["Namespace", "nodeagent"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"


# ── uninstalling ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_uninstalling_runs_no_agent_and_clears_every_node_at_once(rendered: Render) -> None:
    objects = rendered("uninstall.enabled=true")
    work, folders = pod_of(objects)["initContainers"]
    assert "uninstall" in work["args"]
    assert folders["command"] == ["rm", "-rf", "/run/nodeagent/agent", "/run/nodeagent/programs"]
    assert "--now" not in work["args"]
    assert containers_of(objects).keys() == {"done"}
    assert objects[DAEMONSET]["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == "100%"


def test_uninstalling_has_the_programmers_privileges_and_no_token(rendered: Render) -> None:
    work, _ = pod_of(rendered("uninstall.enabled=true"))["initContainers"]
    assert work["securityContext"] == containers_of(rendered())["programmer"]["securityContext"]
    assert "token" not in {volume["name"] for volume in pod_of(rendered("uninstall.enabled=true"))["volumes"]}


def test_uninstalling_can_leave_out_the_wait(rendered: Render) -> None:
    work, _ = pod_of(rendered("uninstall.enabled=true", "uninstall.now=true"))["initContainers"]
    assert "--now" in work["args"]


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────

REFUSED = {
    "a misspelt value": ("imagee.tag=1", "'imagee' not allowed"),
    "a misspelt key of the configuration": ("config.proxy.prot=15001", "at '/config/proxy': additional properties"),
    "a mode that is none": ("config.mode=on", "at '/config/mode': value must be one of"),
    "text for a number": ("config.proxy.port=http", "at '/config/proxy/port': got string, want integer"),
    "a port beyond the last": ("config.proxy.port=70000", "at '/config/proxy/port': maximum"),
    "a dialect that is none": ("config.dialects={istoi}", "at '/config/dialects/0': value must be one of"),
    "a listener that probes cannot reach": ("config.http.metrics=127.0.0.1:9640", "at '/config/http/metrics'"),
    "an update that replaces nothing": ("updateStrategy.maxUnavailable=0", "at '/updateStrategy/maxUnavailable'"),
    "a priority of the system's own": ("priorityClass.value=2000000000", "at '/priorityClass/value': maximum"),
    "a path that is none": ("paths.state=run/nodeagent", "at '/paths/state'"),
    "the whole node for state": ("paths.state=/", "at '/paths/state'"),
    "a log level that is none": ("logLevel=trace", "at '/logLevel': value must be one of"),
    "a digest that is none": ("image.digest=latest", "at '/image/digest'"),
    "an address without a length": ("networkPolicy.apiServer={10.0.0.1}", "at '/networkPolicy/apiServer/0'"),
    "a port by name": ("networkPolicy.apiServerPorts={https}", "at '/networkPolicy/apiServerPorts/0'"),
    "a switch that is text": ("uninstall.enabled=maybe", "at '/uninstall/enabled': got string, want boolean"),
}


@pytest.mark.parametrize(("switch", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_the_schema_refuses(rendered: Render, switch: str, words: str) -> None:
    with pytest.raises(ChartError) as error:
        rendered(switch)
    assert "values don't meet the specifications of the schema" in str(error.value)
    assert words in str(error.value)
