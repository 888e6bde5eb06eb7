"""Pods and containers as a runtime describes them, checked, into frozen data.

Promises: what comes out is safe to log, to compare and to make a path of, and of bounded size.
What a pod's owner writes (annotations, labels) is never a reason to refuse the pod: else anybody
could leave interception by writing too much.  It is cut instead.  What the kubelet and the runtime
write (names, IDs, paths, addresses) is refused with an :class:`InputError` where it is not what
it should be; so no path leads out of where it is looked up.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from nodeagent.errors import InputError, printable
from nodeagent.model import Address
from nodeagent.nri import messages
from nodeagent.policy.dialects import DIALECTS, SIDECARS
from nodeagent.policy.grammar import ANNOTATION

KEYS = frozenset({SIDECARS, *(key for dialect in DIALECTS.values() for key in dialect.fields)})
"""Annotations that are kept: those that set a field in some dialect, and the one that names sidecars."""

LONGEST_VALUE = ANNOTATION.characters + 1
"""Characters of an annotation that are kept: enough to be refused for its size, as the whole would be."""

MOST_LABELS = 256
_LONGEST_LABEL = 63
_LONGEST_LABEL_KEY = 253 + 1 + 63
_MOST_ADDRESSES = 16

_WORD_RE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})")
_PATH_RE = re.compile(r"[!-~]{0,4095}")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod that a runtime has, or is about to have.

    ``uid`` is the kubelet's name of the pod, as in its cgroup's: a static pod's is not that of
    its mirror in the API.  ``netns`` is a path; None where the runtime names none, because the pod
    uses the host's or because its own is gone already: never take it for either.  ``ips`` is empty
    before containerd 2.1 and CRI-O 1.32.  ``cgroups_path`` is in the words of the runtime's cgroup
    driver (``/a/b`` or ``slice:prefix:name``).  ``pid`` is that of the pause process, if there is one.
    """

    id: str
    uid: str
    namespace: str
    name: str
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    ips: tuple[Address, ...] = ()
    netns: str | None = None
    cgroup_parent: str = ""
    cgroups_path: str = ""
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a pod; its owner is None before NRI 0.11 (containerd 2.3)."""

    id: str
    pod_sandbox_id: str
    name: str
    cgroups_path: str = ""
    uid: int | None = None
    gid: int | None = None


def read_sandbox(given: messages.PodSandbox, keys: Iterable[str] = KEYS) -> Sandbox:
    """Return the pod that *given* describes, with those of its annotations that *keys* names.

    Raises:
        InputError: it describes none; the message names the pod and what is wrong.
    """
    who = f"pod {printable(given.namespace)}/{printable(given.name)}"
    linux = given.linux
    return Sandbox(
        id=_word(who, "sandbox ID", given.id),
        uid=_word(who, "UID", given.uid),
        namespace=_word(who, "namespace", given.namespace),
        name=_word(who, "name", given.name),
        annotations={key: given.annotations[key][:LONGEST_VALUE] for key in keys if key in given.annotations},
        labels=_labels(given.labels),
        ips=_addresses(who, given.ips),
        netns=_netns(who, linux.namespaces),
        cgroup_parent=_path(who, "cgroup parent", linux.cgroup_parent),
        cgroups_path=_path(who, "cgroups path", linux.cgroups_path),
        pid=given.pid if given.pid > 0 else None,
    )


def read_container(given: messages.Container) -> Container:
    """Return the container that *given* describes.

    Raises:
        InputError: it describes none.
    """
    who = f"container {printable(given.name)}"
    owner = given.user if given.HasField("user") else None
    return Container(
        id=_word(who, "ID", given.id),
        pod_sandbox_id=_word(who, "sandbox ID", given.pod_sandbox_id),
        name=_word(who, "name", given.name),
        cgroups_path=_path(who, "cgroups path", given.linux.cgroups_path),
        uid=owner.uid if owner else None,
        gid=owner.gid if owner else None,
    )


def _word(who: str, what: str, text: str) -> str:
    if not _WORD_RE.fullmatch(text):
        raise _unfit(who, what, text)
    return text


def _path(who: str, what: str, text: str) -> str:
    if not _PATH_RE.fullmatch(text) or ".." in text.split("/"):
        raise _unfit(who, what, text)
    return text


def _netns(who: str, namespaces: Iterable[messages.LinuxNamespace]) -> str | None:
    paths = {namespace.path for namespace in namespaces if namespace.type == "network" and namespace.path}
    if len(paths) > 1:
        raise InputError(f"{who}: the runtime gives {len(paths)} network namespaces: one was expected")
    for path in paths:
        if not path.startswith("/"):
            raise _unfit(who, "network namespace", path)
        return _path(who, "network namespace", path)
    return None


def _addresses(who: str, texts: Sequence[str]) -> tuple[Address, ...]:
    if len(texts) > _MOST_ADDRESSES:
        raise InputError(f"{who}: {len(texts)} addresses: at most {_MOST_ADDRESSES} are believed")
    return tuple(_address(who, text) for text in texts)


def _address(who: str, text: str) -> Address:
    if "%" in text:  # a zone names a device of one node, and is no part of a pod's address
        raise _unfit(who, "address", text)
    try:
        return ip_address(text)
    except ValueError:
        raise _unfit(who, "address", text) from None


def _labels(given: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that Kubernetes allows, in the order of their keys, up to a number."""
    fit = (key for key in given if len(key) <= _LONGEST_LABEL_KEY and len(given[key]) <= _LONGEST_LABEL)
    return {key: given[key] for key in sorted(fit)[:MOST_LABELS]}


def _unfit(who: str, what: str, text: str) -> InputError:
    return InputError(f"{who}: the runtime's {what} '{printable(text)}' is not one: the pod is left alone")
