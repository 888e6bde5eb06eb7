"""Pod manifests: what is read, and how clearly everything else is refused."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from nodeagent.errors import InputError
from nodeagent.files.configuration import load_configuration
from nodeagent.files.manifest import LARGEST, PodManifest, load, read_pods
from nodeagent.policy import DEFAULT

COMPLETE = """\
apiVersion: v1
kind: Pod
metadata:
  namespace: shop
  name: web-0
  uid: 8a9f3c1e-5d2b-4f6a-9c1d-0123456789ab
  creationTimestamp: 2024-01-01T00:00:00Z
  annotations:
    nodeagent.io/excludeOutboundPorts: "3306"
    nodeagent.io/netns: /run/netns/web
    traffic.sidecar.istio.io/includeOutboundIPRanges: ""
    kubectl.kubernetes.io/restartedAt: "2024-01-01"
spec:
  hostNetwork: true
  containers: [{name: app, resources: {limits: {cpu: 0.5}}}]
status:
  podIP: 10.244.1.5
  podIPs: [{ip: 10.244.1.5}, {ip: "fd00:244:1::5"}]
"""


def test_a_complete_pod() -> None:
    (pod,) = read_pods(COMPLETE, "pod.yaml")
    assert pod == PodManifest(
        namespace="shop",
        name="web-0",
        uid="8a9f3c1e-5d2b-4f6a-9c1d-0123456789ab",
        annotations={
            "nodeagent.io/excludeOutboundPorts": "3306",
            "nodeagent.io/netns": "/run/netns/web",
            "traffic.sidecar.istio.io/includeOutboundIPRanges": "",
        },
        pod_ips=(ip_address("10.244.1.5"), ip_address("fd00:244:1::5")),
        host_network=True,
        netns="/run/netns/web",
    )


def test_a_pod_of_two_lines_has_defaults() -> None:
    (pod,) = read_pods("kind: Pod\nmetadata: {name: web}", "pod.yaml")
    assert pod == PodManifest(name="web")
    assert (pod.namespace, pod.pod_ips, pod.netns) == ("default", (), None)


def test_the_address_of_old_clusters() -> None:
    (pod,) = read_pods("{kind: Pod, metadata: {name: web}, status: {podIP: 10.0.0.1}}", "pod.yaml")
    assert pod.pod_ips == (ip_address("10.0.0.1"),)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "kind: Pod\nmetadata: {name: a}\n---\nkind: Pod\nmetadata: {name: b}\n---\n", id="several documents"
        ),
        pytest.param(
            "kind: List\nitems:\n- {kind: Pod, metadata: {name: a}}\n- {kind: Pod, metadata: {name: b}}", id="a List"
        ),
        pytest.param("kind: PodList\nitems:\n- {metadata: {name: a}}\n- {metadata: {name: b}}", id="a PodList"),
        pytest.param(
            '{"kind": "List", "items": [{"kind": "Pod", "metadata": {"name": "a"}},\n'
            '\t{"kind": "Pod", "metadata": {"name": "b"}}]}',
            id="JSON with tabs",
        ),
    ],
)
def test_several_pods(text: str) -> None:
    assert [pod.name for pod in read_pods(text, "pods.yaml")] == ["a", "b"]


REFUSED = {
    "a Deployment": (
        "kind: Deployment\nmetadata: {name: web}",
        r"pod.yaml:1: .*Deployment.*spec\.template is not read",
    ),
    "a Service": (
        "---\nkind: Pod\nmetadata: {name: a}\n---\nkind: Service",
        "pod.yaml:5: is a Service, not a Pod: give a Pod",
    ),
    "a Service in a List": ("kind: List\nitems:\n- kind: Service", r"pod.yaml:3: items\[0\]: is a Service"),
    "a mapping without kind": ("metadata: {name: a}", "pod.yaml:1: has no kind"),
    "text": ("hello", "pod.yaml:1: is a string, not a Pod"),
    "nothing": ("", "pod.yaml: holds no Pod"),
    "comments only": ("# nothing\n---\n", "pod.yaml: holds no Pod"),
    "an empty List": ("{kind: List, items: []}", "pod.yaml: holds no Pod"),
    "a Pod without a name": ("kind: Pod", "pod.yaml:1: metadata: has no name"),
    "a name with a slash": (
        "kind: Pod\nmetadata:\n  name: ../etc",
        "pod.yaml:3: metadata.name: '../etc' is not a Pod's name",
    ),
    "a namespace in capitals": ("kind: Pod\nmetadata: {name: a, namespace: A}", "metadata.namespace: 'A' is not"),
    "a UID that is a path": (
        "kind: Pod\nmetadata: {name: a, uid: ../../x}",
        r"metadata.uid: '\.\./\.\./x' is not a UID",
    ),
    "a relative netns": (
        "kind: Pod\nmetadata: {name: a, annotations: {nodeagent.io/netns: web}}",
        "nodeagent.io/netns: 'web' is not an absolute path",
    ),
    "an annotation that is a number": (
        "kind: Pod\nmetadata:\n  name: a\n  annotations:\n    x/y: 15001",
        "pod.yaml:5: metadata.annotations.x/y: is a number, and should be a string: quote it",
    ),
    "an annotation that is a truth value": (
        "kind: Pod\nmetadata: {name: a, annotations: {b: on}}",
        "is a boolean.*quote it",
    ),
    "an annotation that is nothing": ("kind: Pod\nmetadata: {name: a, annotations: {b: }}", "is nothing.*quote it"),
    "an annotation that is a list": ("kind: Pod\nmetadata: {name: a, annotations: {b: [c]}}", "is a list"),
    "annotations that are a list": (
        "kind: Pod\nmetadata: {name: a, annotations: [b]}",
        "annotations: is a list, and should be a",
    ),
    "an annotation twice": ("kind: Pod\nmetadata: {name: a, annotations: {b: c, b: d}}", "the key 'b' is here twice"),
    "an address that is none": (
        "kind: Pod\nmetadata: {name: a}\nstatus: {podIP: 10.0.0}",
        "pod.yaml:3: status.podIP: '10.0.0' is not",
    ),
    "an address with a zone": (
        "kind: Pod\nmetadata: {name: a}\nstatus:\n  podIP: fe80::1%eth0",
        "pod.yaml:4: status.podIP: 'fe80::1%eth0' has a zone",
    ),
    "an address with a zone among several": (
        "kind: Pod\nmetadata: {name: a}\nstatus:\n  podIPs:\n  - ip: 10.0.0.1\n  - ip: fe80::1%1",
        r"pod.yaml:6: status.podIPs\[1\].ip: 'fe80::1%1' has a zone",
    ),
    "hostNetwork that is text": (
        "kind: Pod\nmetadata: {name: a}\nspec: {hostNetwork: 'yes'}",
        "hostNetwork: is a string.*true or",
    ),
    "broken YAML": ("kind: Pod\nmetadata: {", "pod.yaml:3: not valid YAML"),
    "a control character": ("kind: \x01", "pod.yaml: not valid YAML"),
    "deep nesting": ("[" * 200_000, "pod.yaml:1: nested more than 64 levels"),
    "deep nesting of keys": ("{a: " * 200_000, "pod.yaml:1: nested more than 64 levels"),
    "aliases that multiply": (
        "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9)),
        "pod.yaml:7: more than 250000 values",
    ),
    "an alias of itself": ("a: &a [*a]", "unknown alias"),
    "too large": ("#" * (LARGEST + 1), f"larger than {LARGEST} bytes"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_a_pod_gets_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_pods(text, "pod.yaml")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text(COMPLETE)
    assert load(str(tmp_path / "pod.yaml")) == read_pods(COMPLETE, "pod.yaml")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.yaml", "missing.yaml: cannot be read: No such file"),
        (".", "is a directory: give one file"),
        ("bytes.yaml", "bytes.yaml:2: not UTF-8"),
        ("large.yaml", "large.yaml: larger than"),
        ("a\0b", "is not the name of a file"),
    ],
)
@pytest.mark.parametrize("read", [load, load_configuration], ids=["a Pod", "a configuration"])
def test_a_file_that_cannot_be_read(read: object, path: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"kind: Pod\n\xff")
    (tmp_path / "large.yaml").write_bytes(b"#" * (LARGEST + 1))
    assert callable(read)
    with pytest.raises(InputError, match=message):
        read(str(tmp_path / path))


def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "input").write_text("kind: Deployment")
    with (tmp_path / "input").open() as file, monkeypatch.context() as patch:
        patch.setattr("sys.stdin", file)
        with pytest.raises(InputError, match="standard input:1: is a Deployment"):
            load("-")


def test_without_a_file_the_configuration_is_the_defaults(tmp_path: Path) -> None:
    assert load_configuration(None) == DEFAULT
    (tmp_path / "config.yaml").write_text("proxy: {port: 4140}")
    assert load_configuration(str(tmp_path / "config.yaml")).policy.proxy_port == 4140
