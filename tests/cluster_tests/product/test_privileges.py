"""Capabilities and RBAC are minimal: take any one away, and what is named here fails.  And nothing else is asked.

`test_daemonset.py` says what the processes have; here each of it is taken away, once.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from nodeagent.cli.capabilities import CAPABILITIES
from tests.cluster import Cluster
from tests.cluster.daemon import Daemon
from tests.cluster.pods import Pods
from tests.cluster.product import NAMESPACE, Product
from tests.cluster_tests.test_agent import run_web

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

ACCOUNT = f"system:serviceaccount:{NAMESPACE}:nodeagent"

# ── each verb ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Rule:
    """One verb of the ClusterRole."""

    resource: str
    verb: str


LIST = Rule("pods", "list")
"""For API servers that do not stream what there is; this one does, and is never asked."""
VERBS = (Rule("pods", "watch"), Rule("events", "create"), Rule("events", "patch"))
ROLE = "/apis/rbac.authorization.k8s.io/v1/clusterroles/nodeagent"


@pytest.fixture
def role(daemon: Daemon) -> Iterator[dict[str, Any]]:
    """Return the role; it is as it was afterwards."""
    before = daemon.node.api.get(ROLE)
    yield before
    daemon.node.api.patch(ROLE, {"rules": before["rules"]})
    daemon.product.wait(daemon.is_ready)


@pytest.mark.parametrize("rule", VERBS, ids=lambda rule: f"{rule.verb} {rule.resource}")
def test_without_a_verb_the_api_server_refuses_what_it_is_for(
    daemon: Daemon, pods: Pods, role: dict[str, Any], rule: Rule
) -> None:
    assert rule.verb in verbs_of(role, rule.resource)
    rules = [
        {
            **each,
            "verbs": [verb for verb in each["verbs"] if verb != rule.verb or rule.resource not in each["resources"]],
        }
        for each in role["rules"]
    ]
    daemon.node.api.patch(ROLE, {"rules": rules})
    daemon.product.wait(lambda: not may(daemon.node, rule))
    begin = len(requests(daemon.node))
    if rule.resource == "events":
        run_web(pods, intercept="enabled", excludeOutboundPorts="x")
    if rule.verb == "patch":
        daemon.product.wait(lambda: "AnnotationRefused" in events(pods))  # which the next agent finds by its name
    if rule.verb != "create":
        daemon.node.api.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{daemon.pod()['metadata']['name']}")
    daemon.product.wait(lambda: (rule.verb, rule.resource) in refused(daemon.node, begin))


def verbs_of(role: dict[str, Any], resource: str) -> list[str]:
    (found,) = (rule["verbs"] for rule in role["rules"] if resource in rule["resources"])
    return list(found)


def may(node: Cluster, rule: Rule) -> bool:
    group = ".events.k8s.io" if rule.resource == "events" else ""
    words = ["auth", "can-i", rule.verb, f"{rule.resource}{group}", f"--as={ACCOUNT}", "--all-namespaces"]
    return node.attempt(["kubectl", *words]).stdout.strip() == "yes"


def events(pods: Pods) -> list[str]:
    found = pods.cluster.api.get(f"/apis/events.k8s.io/v1/namespaces/{pods.namespace}/events")["items"]
    return [str(event.get("reason")) for event in found]


def refused(node: Cluster, begin: int) -> set[tuple[str, str]]:
    return {kind_of(entry) for entry in requests(node)[begin:] if entry["responseStatus"]["code"] == 403}


# ── what is asked ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_api_server_hears_nothing_but_the_expected(daemon: Daemon) -> None:
    """From all that the tests of this module, and of those before, had the agents do."""
    asked = requests(daemon.node)
    assert {kind_of(entry) for entry in asked} == {(rule.verb, rule.resource) for rule in VERBS}
    pods = [entry for entry in asked if entry["objectRef"]["resource"] == "pods"]
    assert all(f"spec.nodeName%3D{daemon.node.node_name}" in entry["requestURI"] for entry in pods), (
        "its own node's alone"
    )


def requests(node: Cluster) -> list[dict[str, Any]]:
    """Return what our account asked of the API server, as its audit log has it."""
    lines = (node.directory / "logs" / "audit.log").read_text().splitlines()
    entries = (json.loads(line) for line in lines if ACCOUNT in line)
    return [entry for entry in entries if entry["user"]["username"] == ACCOUNT and entry["stage"] != "ResponseStarted"]


def kind_of(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["verb"], entry["objectRef"]["resource"]


def test_the_account_may_do_nothing_else(daemon: Daemon) -> None:
    listed = daemon.node.kubectl("auth", "can-i", "--list", f"--as={ACCOUNT}", "--no-headers")
    ours = {" ".join(line.split()) for line in listed.splitlines() if not line.startswith((" ", "self"))}
    given = {line for line in ours if not re.search(r"\[(create|get)\]$", line)}  # what any account may ask of itself
    assert given == {"pods [] [] [list watch]", "events.events.k8s.io [] [] [create patch]"}, ours


# ── each capability: last, for what is taken away does not come back ──────────────────────────────────────────────────


def give(product: Product, *capabilities: str) -> None:
    """Let the programmer have these capabilities, and no others."""
    patch = {"name": "programmer", "securityContext": {"capabilities": {"add": list(capabilities)}}}
    body = {"spec": {"template": {"spec": {"containers": [patch]}}}}
    words = ("patch", "daemonset", "nodeagent", f"--namespace={NAMESPACE}", "--type=strategic")
    product.node.kubectl(*words, f"--patch={json.dumps(body)}")


def no_programmer(says: str) -> Callable[[Daemon, Pods], None]:
    """Return what sees that the programmer ends, and that the agent's probe tells of it."""

    def see(daemon: Daemon, _: Pods) -> None:
        daemon.product.wait(lambda: says in daemon.product.logs("programmer"))
        status, words = daemon.probe()
        assert (status, "no programmer" in words) == (503, True), words
        assert not daemon.container("agent")["ready"]

    return see


def no_events(daemon: Daemon, _: Pods) -> None:
    daemon.product.wait(lambda: "the kernel does not tell of nft changes" in daemon.product.logs("agent"))


def no_legacy(daemon: Daemon, _: Pods) -> None:
    """Rules by nft stand all the same."""
    daemon.product.wait_for_rollout()
    done = daemon.product.exec("nodeagent", "doctor", "-o", "json", container="programmer")
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert (found["backend nft"]["ok"], found["backend legacy"]["ok"]) == (True, False), found
    assert "CAP_NET_RAW" in found["backend legacy"]["detail"]


WITHOUT = {
    "NET_ADMIN": no_programmer("with SYS_ADMIN and NET_ADMIN"),
    "NET_BROADCAST": no_events,
    "NET_RAW": no_legacy,
    "SYS_ADMIN": no_programmer("no network namespace for us"),
    "SYS_PTRACE": no_programmer("give us SYS_PTRACE"),
}


def test_each_capability_has_its_test() -> None:
    assert WITHOUT.keys() == CAPABILITIES.keys()


@pytest.mark.parametrize("name", WITHOUT)
def test_without_a_capability(daemon: Daemon, pods: Pods, name: str) -> None:
    give(daemon.product, *(CAPABILITIES.keys() - {name}))
    daemon.product.wait(lambda: capabilities_of(daemon.pod()) == CAPABILITIES.keys() - {name})
    daemon.product.wait(lambda: daemon.container("agent").get("started"))
    WITHOUT[name](daemon, pods)


def capabilities_of(pod: dict[str, Any]) -> set[str]:
    containers = pod.get("spec", {}).get("containers", ())
    return {name for each in containers for name in each["securityContext"]["capabilities"].get("add", ())}
