"""What of ttrpc's and NRI's messages we say or read: names, types and numbers are theirs.

The numbers are those of ``containerd/ttrpc`` and of NRI's ``api.proto`` (package
``nri.pkg.api.v1alpha1``), whose versions only ever add.  Fields that are not here are skipped.
"""

from collections.abc import MutableMapping, Sequence
from typing import Annotated

from google.protobuf.message import Message

from nodeagent.nri.schema import message

# -- ttrpc --------------------------------------------------------------------------------------


@message
class Request(Message):
    """A call; ``payload`` is the method's own request."""

    service: Annotated[str, 1]
    method: Annotated[str, 2]
    payload: Annotated[bytes, 3]
    timeout_nano: Annotated[int, 4]


@message
class Status(Message):
    """Why a call failed, in gRPC's codes; 0 is success."""

    code: Annotated[int, 1]
    message: Annotated[str, 2]


@message
class Response(Message):
    """The answer to a call; no status is success."""

    status: Annotated[Status, 1]
    payload: Annotated[bytes, 2]


# -- NRI: what there is -------------------------------------------------------------------------


@message
class LinuxNamespace(Message):
    """A namespace of the OCI runtime's specification; without a path it is a new one."""

    type: Annotated[str, 1]
    path: Annotated[str, 2]


@message
class LinuxPodSandbox(Message):
    """What only Linux has."""

    cgroup_parent: Annotated[str, 3]
    cgroups_path: Annotated[str, 4]
    namespaces: Annotated[Sequence[LinuxNamespace], 5]


@message
class PodSandbox(Message):
    """A pod as the runtime knows it; ``ips`` came with NRI 0.8 (containerd 2.1)."""

    id: Annotated[str, 1]
    name: Annotated[str, 2]
    uid: Annotated[str, 3]
    namespace: Annotated[str, 4]
    labels: Annotated[MutableMapping[str, str], 5]
    annotations: Annotated[MutableMapping[str, str], 6]
    linux: Annotated[LinuxPodSandbox, 8]
    pid: Annotated[int, 9]
    ips: Annotated[Sequence[str], 10]


@message
class LinuxContainer(Message):
    """What only Linux has."""

    cgroups_path: Annotated[str, 5]


@message
class User(Message):
    """Whom a container's first process runs as; came with NRI 0.11."""

    uid: Annotated[int, 1]
    gid: Annotated[int, 2]


@message
class Container(Message):
    """A container as the runtime knows it."""

    id: Annotated[str, 1]
    pod_sandbox_id: Annotated[str, 2]
    name: Annotated[str, 3]
    linux: Annotated[LinuxContainer, 11]
    user: Annotated[User, 21]


# -- NRI: what is said about it -----------------------------------------------------------------


@message
class RegisterPluginRequest(Message):
    """The only thing that a plugin asks for; the index (two digits) orders plugins."""

    plugin_name: Annotated[str, 1]
    plugin_idx: Annotated[str, 2]


@message
class ConfigureRequest(Message):
    """What the runtime says about itself; the timeout is in milliseconds (since 0.8), the version since 0.12."""

    runtime_name: Annotated[str, 2]
    runtime_version: Annotated[str, 3]
    request_timeout: Annotated[int, 5]
    NRI_version: Annotated[str, 6]


@message
class ConfigureResponse(Message):
    """Bit n - 1 subscribes to event n; none subscribes to all."""

    events: Annotated[int, 2]


@message
class SynchronizeRequest(Message):
    """What runs already, perhaps in several parts.

    Items are messages, which look the same as ``bytes`` on the wire: so they can be counted
    before each of them costs memory.
    """

    pods: Annotated[Sequence[bytes], 1]
    containers: Annotated[Sequence[bytes], 2]
    more: Annotated[bool, 3]


@message
class SynchronizeResponse(Message):
    """``more`` says that parts are understood."""

    more: Annotated[bool, 2]


@message
class StateChangeEvent(Message):
    """Any event, before NRI 0.12."""

    event: Annotated[int, 1]
    pod: Annotated[PodSandbox, 2]
    container: Annotated[Container, 3]


@message
class EventRequest(Message):
    """One event, since NRI 0.12: ``RunPodSandboxRequest`` and its likes have the same fields."""

    pod: Annotated[PodSandbox, 1]
    container: Annotated[Container, 2]
