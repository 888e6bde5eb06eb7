"""A Pod of the API server, into what is kept of it: bounded, whatever its owner wrote."""

import json
import tracemalloc
from ipaddress import ip_address
from typing import Any

import pytest

from nodeagent.kube.pods import PodError, read_pod
from nodeagent.model import Container, PodManifest
from nodeagent.policy import DEFAULT, Keys, deciding_keys, resolve_pod

KEYS = deciding_keys(DEFAULT)
HASH = "0123456789abcdef0123456789abcdef"
MIRROR = {"kubernetes.io/config.hash": HASH, "kubernetes.io/config.mirror": HASH}
NODE = [{"kind": "Node", "name": "node-1", "controller": True}]


def text(spec: object = None, status: object = None, **metadata: Any) -> bytes:  # noqa: ANN401  # JSON
    meta = {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", **metadata}
    pod = {"metadata": meta, "spec": spec, "status": status}
    return json.dumps({key: value for key, value in pod.items() if value is not None}).encode()


def read(raw: bytes, keys: Keys = KEYS) -> PodManifest:
    return read_pod(raw, keys).manifest


def test_a_pod_of_three_fields() -> None:
    found = read_pod(text(), KEYS)
    assert found.manifest == PodManifest("web", "shop", "u")
    assert (str(found.key), found.version) == ("shop/web", "7")


KEPT = {
    "annotations that a dialect knows": (
        text(
            annotations={"nodeagent.io/proxyPort": "1", "traffic.sidecar.istio.io/excludeOutboundPorts": "2", "x": "y"}
        ),
        {"annotations": {"nodeagent.io/proxyPort": "1", "traffic.sidecar.istio.io/excludeOutboundPorts": "2"}},
    ),
    "misspelt annotations, without their values": (
        text(annotations={"nodeagent.io/proxy-port": "1"}),
        {"annotations": {"nodeagent.io/proxy-port": ""}},
    ),
    "no netns: that is for directories alone": (text(annotations={"nodeagent.io/netns": "/proc/1/ns/net"}), {}),
    "labels that select": (
        text(labels={"nodeagent.io/intercept": "enabled", "app": "web"}),
        {"labels": {"nodeagent.io/intercept": "enabled"}},
    ),
    "Go's null for nothing": (
        text({"containers": None, "initContainers": None}, {"podIPs": None}, annotations=None, labels=None),
        {},
    ),
    "both families": (
        text(status={"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}),
        {"pod_ips": (ip_address("10.0.0.1"), ip_address("fd00::1"))},
    ),
    "the address of old clusters": (text(status={"podIP": "10.0.0.1"}), {"pod_ips": (ip_address("10.0.0.1"),)}),
    "row 17: the host's network": (text({"hostNetwork": True}), {"host_network": True}),
    "containers that run, under the IDs of any runtime": (
        text(
            status={
                "initContainerStatuses": [{"name": "init", "containerID": "cri-o://1f"}],
                "containerStatuses": [{"name": "app", "containerID": "containerd://2f"}, {"name": "waits"}],
                "ephemeralContainerStatuses": [{"name": "debug", "containerID": "docker://3f"}],
            }
        ),
        {"containers": {"1f": "init", "2f": "app", "3f": "debug"}},
    ),
    "a native sidecar, and an init container of which the name is kept": (
        text(
            {
                "initContainers": [{"name": "init"}, {"name": "p", "restartPolicy": "Always"}],
                "containers": [{"name": "a"}],
            }
        ),
        {"running": (Container("p"), Container("a")), "init": ("init",)},
    ),
    "owners, a container's before its pod's": (
        text(
            {
                "securityContext": {"runAsUser": 1, "runAsGroup": 2},
                "containers": [{"name": "a"}, {"name": "b", "securityContext": {"runAsUser": 0}}],
            }
        ),
        {"running": (Container("a", 1, 2), Container("b", 0, 2))},
    ),
    "sidecars that the pod names": (
        text(annotations={"nodeagent.io/sidecarContainers": " a,, b "}),
        {"annotations": {"nodeagent.io/sidecarContainers": " a,, b "}, "sidecars": ("a", "b")},
    ),
    "row 20: a static pod's hash": (text(annotations=MIRROR, ownerReferences=NODE), {"config_hash": HASH}),
    "row 20: no hash that a pod gave itself": (text(annotations=MIRROR), {}),
    "row 20: no hash that is another pod's UID": (
        text(
            annotations=dict.fromkeys(MIRROR, "8a9f3c1e-5d2b-4f6a-9c1d-0123456789ab"),
            ownerReferences=NODE,
        ),
        {},
    ),
    "row 18: nothing of a pod that has succeeded": (
        text(status={"phase": "Succeeded", "podIP": "10.0.0.1"}, annotations={"nodeagent.io/proxyPort": "1"}),
        {"is_over": True},
    ),
    "row 18: nothing of a pod that has failed": (text(status={"phase": "Failed"}), {"is_over": True}),
    "row 18: nothing of a pod whose containers have ended for good": (
        text(
            {"restartPolicy": "Never", "containers": [{"name": "a"}]},
            {"phase": "Running", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 0}}}]},
        ),
        {"is_over": True},
    ),
    "a pod whose container will be restarted": (
        text(
            {"restartPolicy": "OnFailure", "containers": [{"name": "a"}]},
            {"phase": "Running", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 1}}}]},
        ),
        {"running": (Container("a"),)},
    ),
    "a pod one of whose containers runs": (
        text(
            {"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]},
            {
                "containerStatuses": [
                    {"name": "a", "state": {"terminated": {}}},
                    {"name": "b", "state": {"running": {}}},
                ]
            },
        ),
        {"running": (Container("a"), Container("b"))},
    ),
}


@pytest.mark.fault(17)
@pytest.mark.fault(18)
@pytest.mark.fault(20)
@pytest.mark.parametrize(("raw", "fields"), KEPT.values(), ids=KEPT.keys())
def test_what_is_kept(raw: bytes, fields: dict[str, Any]) -> None:
    assert read(raw) == PodManifest("web", "shop", "u", **fields)


def test_a_selectors_own_keys_are_kept() -> None:
    keys = Keys(frozenset({"mesh"}), frozenset({"example.com/team"}))
    found = read(text(labels={"mesh": "on", "app": "x"}, annotations={"example.com/team": "a", "other": "b"}), keys)
    assert (found.labels, found.annotations) == ({"mesh": "on"}, {"example.com/team": "a"})


UNREADABLE = {
    "no JSON": (b"{", None),
    "no Pod": (b"[]", None),
    "no name": (b'{"metadata": {}}', None),
    "not UTF-8": (b'{"metadata": {"name": "\xff"}}', None),
    "an address that is none": (text(status={"podIP": "10.0.0"}), "shop/web"),
    "a number where text should be": (text(annotations={"nodeagent.io/proxyPort": 1}), "shop/web"),
    "text where a number should be": (
        text({"containers": [{"name": "a", "securityContext": {"runAsUser": "1"}}]}),
        "shop/web",
    ),
}


@pytest.mark.parametrize(("raw", "whose"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_cannot_be_read_says_whose_it_is(raw: bytes, whose: str | None) -> None:
    with pytest.raises(PodError) as raised:
        read(raw)
    assert (str(raised.value.key) if raised.value.key else None) == whose
    assert str(raised.value).isprintable()


@pytest.mark.fault(33)
def test_row_33_a_huge_pod_is_kept_small_and_its_value_refused_all_the_same() -> None:
    huge = "nodeagent.io/excludeOutboundPorts"
    junk = {f"nodeagent.io/{n:040}": "x" * 100 for n in range(1000)}
    raw = text(annotations={huge: "," * 200_000, "example.com/blob": "x" * 50_000, **junk})
    tracemalloc.start()
    try:
        found = read(raw)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 64 * 1024
    _, resolution = resolve_pod(found)
    assert [(item.key, item.reason.value) for item in resolution.rejected] == [(huge, "size")]
