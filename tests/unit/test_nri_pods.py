"""What a runtime says about pods and containers: what is kept, what is cut, what is refused."""

from collections.abc import Callable
from ipaddress import ip_address

import pytest

from nodeagent.errors import InputError
from nodeagent.nri import Container, Sandbox, messages
from nodeagent.nri.pods import KEYS, LONGEST_VALUE, MOST_LABELS, read_container, read_sandbox
from nodeagent.policy import resolve
from tests.nri.pods import UID, container, pod


def namespace(path: str, kind: str = "network") -> messages.LinuxNamespace:
    return messages.LinuxNamespace(type=kind, path=path)


def test_a_pod_is_read_as_a_whole() -> None:
    assert read_sandbox(pod(1, intercept="observe")) == Sandbox(
        id=f"{1:064x}",
        uid=UID.format(1),
        namespace="shop",
        name="web-1",
        annotations={"nodeagent.io/intercept": "observe"},
        labels={"app": "web"},
        ips=(ip_address("10.244.0.1"), ip_address("fd00:244::1")),
        netns=f"/var/run/netns/cni-{1:032x}",
        cgroup_parent=f"/kubepods/besteffort/pod{UID.format(1)}",
        cgroups_path=f"/kubepods/besteffort/pod{UID.format(1)}/{1:064x}",
        pid=1001,
    )


def test_a_container_is_read_as_a_whole() -> None:
    given = container(1, pod(1), "sidecar")
    path = f"/kubepods/besteffort/pod{UID.format(1)}/{given.id}"
    assert read_container(given) == Container(given.id, pod(1).id, "sidecar", path, uid=1337, gid=0)


def test_an_owner_that_older_runtimes_leave_out_is_not_root() -> None:
    given = container(1, pod(1))
    given.ClearField("user")
    assert (read_container(given).uid, read_container(given).gid) == (None, None)


@pytest.mark.parametrize(
    ("namespaces", "netns"),
    [
        pytest.param([], None, id="none: the host's, or gone already"),
        pytest.param([namespace("")], None, id="one without a path"),
        pytest.param([namespace("/proc/1/ns/pid", "pid")], None, id="another kind"),
        pytest.param([namespace("/run/netns/a")], "/run/netns/a", id="a path"),
        pytest.param([namespace("/run/netns/a"), namespace("/run/netns/a")], "/run/netns/a", id="a path twice"),
    ],
)
def test_the_netns_is_the_network_namespaces_path(namespaces: list[messages.LinuxNamespace], netns: str | None) -> None:
    given = pod(1)
    given.linux.CopyFrom(messages.LinuxPodSandbox(namespaces=namespaces))
    assert read_sandbox(given).netns == netns


def test_what_older_runtimes_leave_out_is_missing_or_empty() -> None:
    given = messages.PodSandbox(id="a", name="web", uid="u", namespace="shop")
    assert read_sandbox(given) == Sandbox(id="a", name="web", uid="u", namespace="shop")


LONG = "x" * 254


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        pytest.param({"id": ""}, "sandbox ID ''", id="no ID"),
        pytest.param({"uid": ""}, "UID ''", id="no UID"),
        pytest.param({"uid": ".."}, "UID '..'", id="a UID that leads out"),
        pytest.param({"uid": "a/b"}, "UID 'a/b'", id="a UID with a slash"),
        pytest.param({"uid": "a\n"}, "UID 'a\\n'", id="a UID with a line feed"),
        pytest.param({"name": LONG}, f"name '{'x' * 128}...'", id="a name too long"),
        pytest.param({"namespace": "\u0455hop"}, "namespace '\\u0455hop'", id="a letter that looks like another"),
        pytest.param({"ips": ["10.0.0.256"]}, "address '10.0.0.256'", id="no address"),
        pytest.param({"ips": ["fe80::1%eth0"]}, "address 'fe80::1%eth0'", id="an address with a zone"),
        pytest.param({"ips": [""]}, "address ''", id="an empty address"),
    ],
)
def test_a_pod_with_parts_that_are_none_is_refused(changes: dict[str, str | list[str]], what: str) -> None:
    given = pod(1)
    for name, value in changes.items():
        given.ClearField(name)
        given.MergeFrom(messages.PodSandbox(**{name: value}))
    with pytest.raises(InputError) as error:
        read_sandbox(given)
    assert str(error.value).endswith(f"the runtime's {what} is not one: the pod is left alone")


def in_namespaces(*paths: str) -> messages.PodSandbox:
    return linux(namespaces=[namespace(path) for path in paths])


def linux(**fields: object) -> messages.PodSandbox:
    given = pod(1)
    given.linux.CopyFrom(messages.LinuxPodSandbox(**fields))
    return given


def with_addresses(count: int) -> messages.PodSandbox:
    given = pod(1)
    given.MergeFrom(messages.PodSandbox(ips=["10.0.0.1"] * count))
    return given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(in_namespaces("run/netns/a"), "network namespace 'run/netns/a'", id="a relative path"),
        pytest.param(in_namespaces("/run/../proc/1/ns/net"), "network namespace '/run/../", id="a path that leads up"),
        pytest.param(in_namespaces("/run/netns/\n"), "network namespace '/run/netns/\\n'", id="a path of two lines"),
        pytest.param(in_namespaces("/" + "x" * 4096), "network namespace '/xxx", id="a path too long"),
        pytest.param(in_namespaces("/a", "/b"), "gives 2 network namespaces: one was expected", id="two namespaces"),
        pytest.param(linux(cgroup_parent="/a/../.."), "cgroup parent '/a/../..'", id="a cgroup that leads up"),
        pytest.param(linux(cgroups_path=".."), "cgroups path '..'", id="a cgroup that is above"),
        pytest.param(with_addresses(100), "102 addresses: at most 16 are believed", id="a hundred addresses"),
    ],
)
def test_a_pod_that_leads_elsewhere_is_refused(given: messages.PodSandbox, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_sandbox(given)
    assert message in str(error.value)
    assert str(error.value).startswith("pod shop/web-1: ")


@pytest.mark.parametrize("change", ["id", "pod_sandbox_id", "name"])
def test_a_container_without_its_names_is_refused(change: str) -> None:
    given = container(1, pod(1))
    given.ClearField(change)
    with pytest.raises(InputError, match="is not one: the pod is left alone"):
        read_container(given)


def test_only_annotations_that_set_something_are_kept() -> None:
    given = pod(1, excludeOutboundPorts="1", netns="/proc/1/ns/net", misspelt="x")
    given.annotations["traffic.sidecar.istio.io/excludeOutboundPorts"] = "2"
    given.annotations["kubectl.kubernetes.io/last-applied-configuration"] = "{}"
    kept = read_sandbox(given).annotations
    assert kept == {
        "nodeagent.io/excludeOutboundPorts": "1",
        "traffic.sidecar.istio.io/excludeOutboundPorts": "2",
    }
    assert kept.keys() <= KEYS


def huge_annotation(given: messages.PodSandbox) -> None:
    given.annotations["nodeagent.io/excludeOutboundPorts"] = "1," * 2_000_000


def many_annotations(given: messages.PodSandbox) -> None:
    for number in range(10_000):
        given.annotations[f"nodeagent.io/x{number}"] = "y" * 100


def many_labels(given: messages.PodSandbox) -> None:
    for number in range(10_000):
        given.labels[f"x{number:05}"] = "y"


def huge_label(given: messages.PodSandbox) -> None:
    given.labels["x"] = "y" * 1_000_000
    given.labels["z" * 1_000_000] = "y"


@pytest.mark.parametrize("write", [huge_annotation, many_annotations, many_labels, huge_label])
def test_no_owner_can_write_so_much_that_the_pod_is_not_taken(write: Callable[[messages.PodSandbox], None]) -> None:
    given = pod(1)
    write(given)
    sandbox = read_sandbox(given)
    assert len(sandbox.labels) <= MOST_LABELS
    texts = (*sandbox.annotations.values(), *sandbox.labels, *sandbox.labels.values())
    assert sum(map(len, texts)) <= LONGEST_VALUE + 380 * MOST_LABELS


def test_an_annotation_that_is_cut_is_refused_like_the_whole() -> None:
    given = pod(1)
    huge_annotation(given)
    cut = resolve(read_sandbox(given).annotations)
    whole = resolve(dict(given.annotations))
    assert [item.reason for item in cut.rejected] == [item.reason for item in whole.rejected] == ["size"]
    assert cut.policy == whole.policy
