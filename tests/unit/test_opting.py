"""Opting in: which pods are ours, how far we go, and who their proxy is.  The first match wins."""

from dataclasses import replace

import pytest

from nodeagent.model import Container, Mode, PodManifest
from nodeagent.policy import Skip, opt_in, read_configuration, resolve_pod

APP = Container("app")
ISTIO = Container("istio-proxy", 1337, 1337)
KEY = "nodeagent.io/intercept"
ENABLED = {KEY: "enabled"}

WATCHED = "mode: observe"
MOVED = "mode: observe\nnamespaces: {shop: {mode: enforce}}"
BY_TEAM = "optIn: {sidecars: false, annotations: {}, labels: {mesh: ['on'], tier: ['*']}}"


def pod(**fields: object) -> PodManifest:
    return replace(PodManifest("web", "shop", running=(APP,)), **fields)  # type: ignore[arg-type]  # a table's rows


OPTED_IN = {
    "an annotation": ("", pod(annotations=ENABLED), Mode.ENFORCE, f"annotation {KEY}"),
    "an annotation with blanks around its word": ("", pod(annotations={KEY: " enabled "}), Mode.ENFORCE, "annotation"),
    "an annotation that asks to be watched": ("", pod(annotations={KEY: "observe"}), Mode.OBSERVE, "annotation"),
    "a label": ("", pod(labels=ENABLED), Mode.ENFORCE, f"label {KEY}"),
    "a label that asks to be watched": ("", pod(labels={KEY: "observe"}), Mode.OBSERVE, "label"),
    "an annotation before a label": ("", pod(annotations=ENABLED, labels={KEY: "observe"}), Mode.ENFORCE, "annotation"),
    "a sidecar": ("", pod(running=(APP, ISTIO)), Mode.ENFORCE, "sidecar istio-proxy"),
    "a sidecar ahead of its app": ("", pod(running=(ISTIO, APP)), Mode.ENFORCE, "sidecar istio-proxy"),
    "a sidecar that the configuration names": (
        "proxy: {containers: [mesh]}",
        pod(running=(APP, Container("mesh"))),
        Mode.ENFORCE,
        "sidecar mesh",
    ),
    "a sidecar that the pod names": (
        "",
        pod(running=(APP, Container("p")), sidecars=("p",)),
        Mode.ENFORCE,
        "sidecar p",
    ),
    "a namespace": ("namespaces: {shop: {optIn: true}}", pod(), Mode.ENFORCE, "configuration namespaces.shop.optIn"),
    "an annotation in a namespace that is out": (
        "namespaces: {shop: {optIn: false}}",
        pod(annotations=ENABLED),
        Mode.ENFORCE,
        "annotation",
    ),
    "a label of one's own": (BY_TEAM, pod(labels={"mesh": "on"}), Mode.ENFORCE, "label mesh"),
    "a label of one's own, whatever it says": (BY_TEAM, pod(labels={"tier": "x"}), Mode.ENFORCE, "label tier"),
    "a sidecar where the cluster is watched": (WATCHED, pod(running=(APP, ISTIO)), Mode.OBSERVE, "sidecar"),
    "a sidecar in the namespace that has moved": (MOVED, pod(running=(APP, ISTIO)), Mode.ENFORCE, "sidecar"),
    "a sidecar in a namespace that has not": (
        MOVED,
        pod(namespace="till", running=(APP, ISTIO)),
        Mode.OBSERVE,
        "sidecar",
    ),
    "a pod that goes ahead of its cluster": (WATCHED, pod(annotations=ENABLED), Mode.ENFORCE, "annotation"),
    "a pod that stays behind its namespace": (
        MOVED,
        pod(annotations={KEY: "observe"}),
        Mode.OBSERVE,
        "annotation",
    ),
    "a sidecar beside a mesh's init container": (
        "",
        pod(running=(APP, ISTIO), init=("istio-init",)),
        Mode.OBSERVE,
        "sidecar",
    ),
    "a mesh's init container that the runtime starts": (
        "",
        pod(annotations=ENABLED, running=(Container("linkerd-init"),)),
        Mode.OBSERVE,
        "annotation",
    ),
    "an init container that redirects nothing": (
        "",
        pod(running=(APP, ISTIO), init=("migrate",)),
        Mode.ENFORCE,
        "sidecar",
    ),
    "a mesh's init container that the configuration does not name": (
        "proxy: {initContainers: []}",
        pod(running=(APP, ISTIO), init=("istio-init",)),
        Mode.ENFORCE,
        "sidecar",
    ),
    "a sidecar and a word that nobody knows": (
        "",
        pod(annotations={KEY: "enbaled"}, running=(APP, ISTIO)),
        Mode.ENFORCE,
        "sidecar",
    ),
}

SKIPPED = {
    "a pod that says nothing": ("", pod(), Skip.NOT_OPTED_IN, "neither"),
    "a pod of the host's network": ("", pod(annotations=ENABLED, host_network=True), Skip.HOST_NETWORK, "host's"),
    "a pod of the host's network that opts out": (
        "",
        pod(annotations={KEY: "disabled"}, host_network=True),
        Skip.HOST_NETWORK,
        "host's",
    ),
    "row 18: a Job that has completed": ("", pod(annotations=ENABLED, is_over=True), Skip.TERMINATED, "nothing runs"),
    "an annotation that opts out": (
        "",
        pod(annotations={KEY: "disabled"}, running=(APP, ISTIO)),
        Skip.DISABLED,
        f"annotation {KEY}",
    ),
    "a label that opts out": ("", pod(labels={KEY: "disabled"}, running=(APP, ISTIO)), Skip.DISABLED, f"label {KEY}"),
    "a namespace that is out": (
        "namespaces: {shop: {optIn: false}}",
        pod(running=(APP, ISTIO)),
        Skip.NOT_OPTED_IN,
        "configuration namespaces.shop.optIn",
    ),
    "a namespace that is switched off": (
        "namespaces: {shop: {mode: disabled}}",
        pod(running=(APP, ISTIO)),
        Skip.DISABLED,
        "configuration namespaces.shop.mode",
    ),
    "a cluster that is switched off": (
        "mode: disabled",
        pod(labels={"x": "y"}, running=(APP, ISTIO)),
        Skip.DISABLED,
        "",
    ),
    "a gateway": ("", pod(running=(ISTIO,)), Skip.NOT_OPTED_IN, "istio-proxy stands alone"),
    "a sidecar where sidecars say nothing": (BY_TEAM, pod(running=(APP, ISTIO)), Skip.NOT_OPTED_IN, "neither"),
    "an annotation that the configuration took the meaning of": (
        BY_TEAM,
        pod(annotations=ENABLED),
        Skip.NOT_OPTED_IN,
        "neither",
    ),
    "a label with another value": (BY_TEAM, pod(labels={"mesh": "off"}), Skip.NOT_OPTED_IN, "neither"),
    "a word that nobody knows": ("", pod(annotations={KEY: "enbaled"}), Skip.NOT_OPTED_IN, "neither"),
    "a canonical key where its dialect is off": (
        "dialects: [istio]\noptIn: {annotations: {}}",
        pod(annotations={KEY: "enabled"}),
        Skip.NOT_OPTED_IN,
        "neither",
    ),
}


@pytest.mark.parametrize(("text", "manifest", "mode", "why"), OPTED_IN.values(), ids=OPTED_IN.keys())
def test_opted_in_by(text: str, manifest: PodManifest, mode: Mode, why: str) -> None:
    configuration = read_configuration(text)
    found = opt_in(manifest, configuration)
    assert (found.skipped, found.mode) == (None, mode)
    assert found.why.startswith(why)
    assert not found.warnings
    opted, resolution = resolve_pod(manifest, configuration)
    assert opted == found
    assert resolution.policy.mode is (found.base.mode if resolution.rejected else mode)


@pytest.mark.fault(17)
@pytest.mark.fault(18)
@pytest.mark.parametrize(("text", "manifest", "skip", "why"), SKIPPED.values(), ids=SKIPPED.keys())
def test_left_alone(text: str, manifest: PodManifest, skip: Skip, why: str) -> None:
    configuration = read_configuration(text)
    found = opt_in(manifest, configuration)
    assert (found.skipped, found.mode) == (skip, Mode.DISABLED)
    assert why in found.why
    assert resolve_pod(manifest, configuration)[1].policy.mode is Mode.DISABLED


OWNERS = {
    "a sidecar's own": ((ISTIO,), (1337,), (1337,), "container istio-proxy"),
    "another uid than the configuration's": ((Container("linkerd-proxy", 2102, 2102),), (2102,), (2102,), "container"),
    "a uid without a gid": ((Container("envoy", 101),), (101,), (), "container envoy"),
    "a gid without a uid": ((Container("envoy", None, 101),), (), (101,), "container envoy"),
    "root is not told by uid 0 where a gid tells it": ((Container("istio-proxy", 0, 1337),), (), (1337,), "container"),
    "group 0 is everybody's": ((Container("envoy", 101, 0),), (101,), (), "container"),
    "an image that decides leaves the configuration's": ((Container("envoy"),), (1337,), (1337,), "default"),
    "an image that decides, in group 0": ((Container("envoy", None, 0),), (1337,), (1337,), "default"),
    "one of two whose image decides": ((ISTIO, Container("envoy")), (1337,), (1337,), "default"),
    "two": ((ISTIO, Container("envoy", 101, 101)), (101, 1337), (101, 1337), "container istio-proxy, envoy"),
}


@pytest.mark.parametrize(("proxies", "uids", "gids", "source"), OWNERS.values(), ids=OWNERS.keys())
def test_the_proxys_owner(
    proxies: tuple[Container, ...], uids: tuple[int, ...], gids: tuple[int, ...], source: str
) -> None:
    found, resolution = resolve_pod(pod(running=(APP, *proxies)))
    assert found.sidecars == tuple(proxy.name for proxy in proxies)
    assert (resolution.policy.proxy_uids, resolution.policy.proxy_gids) == (uids, gids)
    assert resolution.policy.sources["proxy_uids"].startswith(source)


def test_an_annotation_wins_over_the_sidecars_own_uid() -> None:
    found = resolve_pod(pod(running=(APP, ISTIO), annotations={"nodeagent.io/proxyUID": "7"}))[1]
    assert (found.policy.proxy_uids, found.policy.proxy_gids) == ((7,), (1337,))
    assert found.policy.sources["proxy_uids"] == "annotation nodeagent.io/proxyUID"


def test_a_refused_annotation_leaves_a_pod_in_with_the_clusters_mode() -> None:
    """None of a pod's annotations counts if one is refused; that it is ours was decided before."""
    manifest = pod(annotations={KEY: "observe", "nodeagent.io/excludeOutboundPorts": "99999"}, running=(APP, ISTIO))
    opted, found = resolve_pod(manifest)
    assert opted.skipped is None
    assert (found.policy.mode, len(found.rejected)) == (Mode.ENFORCE, 1)


WARNINGS = {
    "a label that says nothing": (pod(labels={KEY: "On"}), f"label {KEY}: 'On' says nothing: use enabled, observe"),
    "a sidecar that is not there": (pod(sidecars=("gone",)), "no container is called gone"),
    "a sidecar that is root": (pod(running=(APP, Container("envoy", 0))), "its sidecar runs as root"),
}


@pytest.mark.parametrize(("manifest", "warning"), WARNINGS.values(), ids=WARNINGS.keys())
def test_what_hardly_anybody_means(manifest: PodManifest, warning: str) -> None:
    opted, resolution = resolve_pod(manifest)
    assert opted.warnings[0].startswith(warning)
    assert resolution.warnings[0] == opted.warnings[0]


def test_pods_without_anything_of_their_own_share_the_clusters_policy() -> None:
    configuration = read_configuration("defaults: {excludeOutboundIPRanges: 10.0.0.0/8}")
    assert opt_in(pod(annotations=ENABLED), configuration).base is configuration.policy


SUSPENDED = {
    "an annotation": ("", pod(annotations=ENABLED)),
    "a label": ("", pod(labels=ENABLED)),
    "a sidecar": ("", pod(running=(APP, ISTIO))),
    "its namespace": ("namespaces: {shop: {optIn: true, mode: enforce}}", pod()),
    "an annotation beside one that is refused": ("", pod(annotations={**ENABLED, "nodeagent.io/proxyPort": "x"})),
}


@pytest.mark.parametrize(("text", "manifest"), SUSPENDED.values(), ids=SUSPENDED.keys())
def test_the_kill_switch_outranks(text: str, manifest: PodManifest) -> None:
    configuration = read_configuration(f"suspend: true\n{text}")
    policy = resolve_pod(manifest, configuration)[1].policy
    assert (policy.mode, policy.sources["mode"]) == (Mode.OBSERVE, "configuration suspend")


def test_the_kill_switch_opts_nobody_in() -> None:
    configuration = read_configuration("suspend: true")
    assert resolve_pod(pod(annotations={KEY: "disabled"}), configuration)[1].policy.mode is Mode.DISABLED
    assert resolve_pod(pod(), configuration)[0].skipped is Skip.NOT_OPTED_IN
