"""Pod manifests, as ``kubectl`` takes and prints them, into what the agent needs of a Pod.

Promises: every Pod of a text, in order, or an :class:`InputError` of one line that names file,
line and the way out; never some of the Pods.  Keeps only annotations that a dialect may know, so
that memory is bounded.  Refuses what the API server would refuse in the parts that are read.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from nodeagent.errors import InputError, printable
from nodeagent.files.text import read_text
from nodeagent.model import Address, PodManifest
from nodeagent.policy.dialects import NETNS, SIDECARS, may_be_known
from nodeagent.policy.document import Node, read_documents

__all__ = ["LARGEST", "PodManifest", "load", "read_pods"]

LARGEST = 1536 * 1024
"""Bytes: as much as etcd takes."""

_NAME_RE = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_UID_RE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,126})")
_NETNS_RE = re.compile(r"/[!-~]{1,4095}")
_CONTAINER_NAME_RE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_CONTAINER_ID_RE = re.compile(r"[a-z0-9.+-]{1,32}://([A-Za-z0-9][A-Za-z0-9_.-]{0,127})")
_CONFIG_HASH = "kubernetes.io/config.hash"
_STATUSES = ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses")
_MOST_CONTAINERS = 64
_TEMPLATED = {"Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "CronJob", "ReplicationController"}


def load(path: str) -> tuple[PodManifest, ...]:
    """Return the Pods of the file at *path*, or of standard input for ``-``.

    Raises:
        InputError: the file cannot be read, or is not what :func:`read_pods` takes.
    """
    name, text = read_text(path, LARGEST)
    return read_pods(text, name)


def read_pods(text: str, name: str) -> tuple[PodManifest, ...]:
    """Return the Pods of *text*: YAML or JSON, several documents, Lists included.

    >>> read_pods("{kind: Pod, metadata: {name: web}}", "pod.yaml")[0].namespace
    'default'

    Raises:
        InputError: something in *text* is not a Pod; *name* is what the message calls the file.
    """
    if len(text) > LARGEST:
        raise InputError(f"{name}: larger than {LARGEST} bytes: is this the right file?")
    documents = [node for node in read_documents(text, name) if node.value is not None]
    pods = tuple(pod for document in documents for pod in _pods(_Part(name, document)))
    if not pods:
        raise InputError(f"{name}: holds no Pod: give a Pod manifest")
    return pods


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a manifest that knows where it stands, and says so in its errors."""

    file: str
    node: Node
    path: str = ""

    def error(self, problem: str) -> InputError:
        where = f"{self.path}: " if self.path else ""
        return InputError(f"{self.file}:{self.node.line}: {where}{problem}")

    def mapping(self) -> Mapping[str, Node]:
        if self.node.value is None:
            return {}
        if not isinstance(self.node.value, Mapping):
            raise self.error(f"is {self.node.kind}, and should be a mapping")
        return self.node.value

    def parts(self) -> Iterator["_Part"]:
        """Yield the items of a list."""
        if self.node.value is None:
            return
        if not isinstance(self.node.value, tuple):
            raise self.error(f"is {self.node.kind}, and should be a list")
        for n, item in enumerate(self.node.value):
            yield _Part(self.file, item, f"{self.path}[{n}]")

    def get(self, key: str) -> "_Part":
        """Return the part under *key*; one without a value where there is none."""
        path = f"{self.path}.{printable(key)}" if self.path else printable(key)
        return _Part(self.file, self.mapping().get(key, Node(None, self.node.line)), path)

    def text(self, default: str | None = "") -> str:
        """Return the string; *default* where there is nothing, and None allows no such thing."""
        value = default if self.node.value is None else self.node.value
        if not isinstance(value, str):
            raise self.error(f"is {self.node.kind}, and should be a string: quote it")
        return value

    def flag(self) -> bool:
        if not isinstance(self.node.value, bool | None):
            raise self.error(f"is {self.node.kind}, and should be true or false")
        return bool(self.node.value)

    def matching(self, pattern: re.Pattern[str], what: str, default: str = "") -> str:
        text = self.text(default)
        if text != default and not pattern.fullmatch(text):
            raise self.error(f"'{printable(text)}' is not {what}")
        return text


def _pods(part: _Part) -> Iterator[PodManifest]:
    """Yield the Pods of one document."""
    if not isinstance(part.node.value, Mapping):
        raise part.error(f"is {part.node.kind}, not a Pod: give a Pod manifest")
    kind = part.get("kind").text()
    if kind == "Pod":
        yield _pod(part)
    elif kind in {"List", "PodList"}:
        for item in part.get("items").parts():
            # A PodList's items may leave out what the list says already.
            yield _pod(item) if kind == "PodList" and "kind" not in item.mapping() else _listed(item)
    else:
        raise _not_a_pod(part, kind)


def _listed(part: _Part) -> PodManifest:
    kind = part.get("kind").text()
    if kind != "Pod":
        raise _not_a_pod(part, kind)
    return _pod(part)


def _not_a_pod(part: _Part, kind: str) -> InputError:
    if not kind:
        return part.error("has no kind: give a Pod manifest (kind: Pod)")
    if kind in _TEMPLATED:
        return part.error(
            f"is a {kind}, whose spec.template is not read: give one of its Pods (kubectl get pod -o yaml)"
        )
    return part.error(f"is a {printable(kind)}, not a Pod: give a Pod manifest")


def _pod(part: _Part) -> PodManifest:
    metadata = part.get("metadata")
    annotations = _annotations(metadata.get("annotations"))
    return PodManifest(
        name=_name(metadata),
        namespace=metadata.get("namespace").matching(_NAME_RE, "the name of a namespace", default="default"),
        uid=metadata.get("uid").matching(_UID_RE, "a UID"),
        annotations=annotations,
        pod_ips=_pod_ips(part.get("status")),
        host_network=part.get("spec").get("hostNetwork").flag(),
        netns=_netns(metadata.get("annotations")),
        containers=_containers(part.get("status")),
        config_hash=metadata.get("annotations").get(_CONFIG_HASH).matching(_UID_RE, "a hash"),
        sidecars=_sidecars(metadata.get("annotations").get(SIDECARS)),
    )


def _name(metadata: _Part) -> str:
    name = metadata.get("name").matching(_NAME_RE, "a Pod's name")
    if not name:
        raise metadata.error("has no name: give the Pod one (metadata.name)")
    return name


def _annotations(part: _Part) -> dict[str, str]:
    """Return the annotations that a dialect may know.  All are checked, as the API server does."""
    texts = {key: part.get(key).text(default=None) for key in part.mapping()}
    return {key: text for key, text in texts.items() if may_be_known(key)}


def _netns(annotations: _Part) -> str | None:
    part = annotations.get(NETNS)
    return part.matching(_NETNS_RE, "an absolute path, such as /run/netns/pod") or None


def _sidecars(part: _Part) -> tuple[str, ...]:
    names = tuple(name for item in part.text().split(",") if (name := item.strip(" ")))
    for name in names:
        if not _CONTAINER_NAME_RE.fullmatch(name):
            raise part.error(f"'{printable(name)}' is not a container's name")
    return names[:_MOST_CONTAINERS]


def _containers(status: _Part) -> dict[str, str]:
    """Return the names of the containers that run or ran, by ID; a container that waits has none yet."""
    found: dict[str, str] = {}
    for item in (item for key in _STATUSES for item in status.get(key).parts()):
        name = item.get("name").matching(_CONTAINER_NAME_RE, "a container's name")
        container = _CONTAINER_ID_RE.fullmatch(item.get("containerID").text())
        if container and len(found) < _MOST_CONTAINERS:
            found[container[1]] = name
    return found


def _pod_ips(status: _Part) -> tuple[Address, ...]:
    """Return ``status.podIPs``, or ``status.podIP`` from before there were two."""
    parts = [item.get("ip") for item in status.get("podIPs").parts()] or [status.get("podIP")]
    return tuple(_address(part) for part in parts if part.text())


def _address(part: _Part) -> Address:
    text = part.text()
    if "%" in text:  # the standard library takes it for a part of the address, which no interface then has
        raise part.error(
            f"'{printable(text)}' has a zone, which names a device of one node: leave '%' and the rest out"
        )
    try:
        return ip_address(text)
    except ValueError as error:
        raise part.error(f"'{printable(text)}' is not an IP address") from error
