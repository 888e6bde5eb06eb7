"""A Pod as the API server sends it, into what the agent keeps of it.

Promises: fields that nobody needs are skipped while the text is read, and never become objects;
what is kept is bounded, whatever a pod's owner wrote.  Refuses nothing that the API server
accepts: a Pod that cannot be read is a :class:`PodError` that says whose it is, if that can be read.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

import msgspec

from nodeagent.errors import InputError, printable
from nodeagent.model import Address, Container, PodKey, PodManifest
from nodeagent.policy import Keys
from nodeagent.policy.dialects import DIALECTS, NETNS, may_be_known
from nodeagent.policy.grammar import ANNOTATION
from nodeagent.policy.opting import MOST_CONTAINERS, read_sidecars

_CONFIG_HASH, _CONFIG_MIRROR = "kubernetes.io/config.hash", "kubernetes.io/config.mirror"
_HASH_RE = re.compile(r"[0-9a-f]{32}")  # what kubelet makes; never a UID of the API server, which has dashes
_CONTAINER_ID_RE = re.compile(r"[a-z0-9.+-]{1,32}://([A-Za-z0-9][A-Za-z0-9_.-]{0,127})")
_KNOWN = frozenset(key for dialect in DIALECTS.values() for key in (*dialect.fields, *dialect.not_ours))
_MOST_UNKNOWN = 64
"""Annotations under a known prefix that no dialect knows: enough to tell their owner."""
_LONGEST = ANNOTATION.characters + 1
"""Characters of an annotation's value: one more than what would be read, so that it is refused all the same."""
_OVER = ("Succeeded", "Failed")
_NATIVE = "Always"
"""An init container's restartPolicy: it stays, beside the others."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Part of an object; unknown fields are skipped, and Go's null is the same as nothing."""


class _Owner(_Part, frozen=True):
    kind: str = ""


class _Identity(_Part, frozen=True):
    name: str
    namespace: str
    uid: str
    resource_version: str = ""


class _Metadata(_Identity, frozen=True):
    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    owner_references: tuple[_Owner, ...] | None = None


class _Security(_Part, frozen=True):
    run_as_user: int | None = None
    run_as_group: int | None = None


class _Container(_Part, frozen=True):
    name: str
    restart_policy: str = ""
    security_context: _Security | None = None


class _Spec(_Part, frozen=True):
    host_network: bool = False
    restart_policy: str = "Always"
    security_context: _Security | None = None
    containers: tuple[_Container, ...] | None = None
    init_containers: tuple[_Container, ...] | None = None


class _Ended(_Part, frozen=True):
    """That it is there says enough."""


class _State(_Part, frozen=True):
    terminated: _Ended | None = None


class _ContainerStatus(_Part, frozen=True):
    name: str
    container_id: str = msgspec.field(name="containerID", default="")
    state: _State | None = None


class _PodIP(_Part, frozen=True):
    ip: str = ""


class _Status(_Part, frozen=True):
    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    pod_ips: tuple[_PodIP, ...] | None = msgspec.field(name="podIPs", default=None)
    container_statuses: tuple[_ContainerStatus, ...] | None = None
    init_container_statuses: tuple[_ContainerStatus, ...] | None = None
    ephemeral_container_statuses: tuple[_ContainerStatus, ...] | None = None


class _Pod(_Part, frozen=True):
    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status = _Status()


class _Named(_Part, frozen=True):
    metadata: _Identity


_POD = msgspec.json.Decoder(_Pod)
_NAMED = msgspec.json.Decoder(_Named)


@dataclass(frozen=True, slots=True)
class Described:
    """A pod, and the version of its description."""

    key: PodKey
    version: str
    manifest: PodManifest


class PodError(InputError):
    """A Pod cannot be read; ``key`` and ``version`` say which, and None that not even that is known."""

    def __init__(self, problem: str, key: PodKey | None = None, version: str = "") -> None:
        super().__init__(f"{key}: {problem}" if key else problem)
        self.key, self.version = key, version


def read_pod(raw: bytes | msgspec.Raw, keys: Keys) -> Described:
    """Return what is kept of a Pod, given as JSON; *keys* are those by which pods are selected.

    Raises:
        PodError: it is not a Pod as we know them.
    """
    try:
        pod = _POD.decode(raw)
        key = _key(pod.metadata)
        return Described(key, pod.metadata.resource_version, _manifest(key, pod, keys))
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise _unreadable(raw, printable(str(error))) from None


def _unreadable(raw: bytes | msgspec.Raw, problem: str) -> PodError:
    try:
        metadata = _NAMED.decode(raw).metadata
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return PodError(f"not a Pod: {problem}")
    return PodError(f"cannot be read: {problem}", _key(metadata), metadata.resource_version)


def _key(metadata: _Identity) -> PodKey:
    return PodKey(metadata.namespace, metadata.name, metadata.uid, "")


def _manifest(key: PodKey, pod: _Pod, keys: Keys) -> PodManifest:
    if _is_over(pod):
        return PodManifest(key.name, key.namespace, key.uid, host_network=pod.spec.host_network, is_over=True)
    annotations, labels = pod.metadata.annotations or {}, pod.metadata.labels or {}
    return PodManifest(
        name=key.name,
        namespace=key.namespace,
        uid=key.uid,
        annotations=_kept(annotations, keys.annotations),
        pod_ips=_addresses(pod.status),
        host_network=pod.spec.host_network,
        containers=dict(_containers(pod.status)),
        config_hash=_config_hash(pod.metadata, annotations),
        sidecars=read_sidecars(annotations),
        labels={name: value for name, value in labels.items() if name in keys.labels},
        running=tuple(_running(pod.spec)),
        init=tuple(item.name for item in pod.spec.init_containers or () if item.restart_policy != _NATIVE)[
            :MOST_CONTAINERS
        ],
    )


def _is_over(pod: _Pod) -> bool:
    """Say whether nothing runs in it any more, and nothing will."""
    if pod.status.phase in _OVER:
        return True
    statuses = pod.status.container_statuses or ()
    ended = sum(1 for status in statuses if status.state and status.state.terminated is not None)
    return pod.spec.restart_policy == "Never" and 0 < len(pod.spec.containers or ()) <= ended


def _kept(annotations: Mapping[str, str], selecting: frozenset[str]) -> dict[str, str]:
    """Return what a dialect or a selector may ask for; the netns is not for the API to name."""
    kept = {key: value[:_LONGEST] for key, value in annotations.items() if key in _KNOWN or key in selecting}
    unknown = sorted(key for key in annotations if key not in kept and may_be_known(key))[:_MOST_UNKNOWN]
    kept |= dict.fromkeys(unknown, "")  # misspelt: their values mean nothing
    kept.pop(NETNS, None)
    return kept


def _addresses(status: _Status) -> tuple[Address, ...]:
    texts = [item.ip for item in status.pod_ips or () if item.ip] or [status.pod_ip]
    return tuple(ip_address(text) for text in texts if text)


def _containers(status: _Status) -> Iterator[tuple[str, str]]:
    """Yield ID and name of the containers that run or ran; a container that waits has no ID yet."""
    groups = (status.init_container_statuses, status.container_statuses, status.ephemeral_container_statuses)
    every = [item for group in groups for item in group or ()]
    for item in every[:MOST_CONTAINERS]:
        if found := _CONTAINER_ID_RE.fullmatch(item.container_id):
            yield found[1], item.name


def _config_hash(metadata: _Metadata, annotations: Mapping[str, str]) -> str:
    """Return what stands for the UID in the cgroups of a static pod, whose kubelet made a mirror of it."""
    found = annotations.get(_CONFIG_HASH, "")
    is_mirror = annotations.get(_CONFIG_MIRROR) == found
    is_nodes = any(owner.kind == "Node" for owner in metadata.owner_references or ())
    return found if is_mirror and is_nodes and _HASH_RE.fullmatch(found) else ""


def _running(spec: _Spec) -> Iterator[Container]:
    native = [item for item in spec.init_containers or () if item.restart_policy == _NATIVE]
    whole = spec.security_context or _Security()
    for item in (*native, *(spec.containers or ()))[:MOST_CONTAINERS]:
        own = item.security_context or _Security()
        uid = whole.run_as_user if own.run_as_user is None else own.run_as_user
        gid = whole.run_as_group if own.run_as_group is None else own.run_as_group
        yield Container(item.name, uid, gid)
