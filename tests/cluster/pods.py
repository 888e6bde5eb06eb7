"""Pods for tests: run one, talk to it, look at it; a namespace of their own, which goes with them."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from tests.cluster.api import Api, ApiError, Object

NOT_FOUND = 404


class Kubernetes(Protocol):
    """What a cluster of either kind offers."""

    @property
    def api(self) -> Api:
        """The API, as its administrator."""

    @property
    def image(self) -> str:
        """An image with a shell and Python."""

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl; return what it printed."""


@dataclass(frozen=True)
class Pod:
    """A pod that is ready, as it was then; `now` is how it is."""

    cluster: Kubernetes
    path: str
    object: Object

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.object["metadata"]["name"])

    @property
    def uid(self) -> str:
        """Its UID."""
        return str(self.object["metadata"]["uid"])

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its addresses, the primary one first."""
        return tuple(entry["ip"] for entry in self.object["status"]["podIPs"])

    @property
    def container_ids(self) -> tuple[str, ...]:
        """Its containers' ids, without the runtime's name."""
        return tuple(status["containerID"].rpartition("/")[2] for status in self.object["status"]["containerStatuses"])

    def now(self) -> Object:
        """Return the pod as it is now."""
        return self.cluster.api.get(self.path)

    def exec(self, *command: str, stdin: str = "") -> str:
        """Run *command* in its first container; return what it printed."""
        namespace = self.object["metadata"]["namespace"]
        given = ("--stdin",) if stdin else ()
        return self.cluster.kubectl("exec", f"--namespace={namespace}", *given, self.name, "--", *command, stdin=stdin)

    def delete(self) -> None:
        """Delete it at once, and wait until it has gone."""
        self.cluster.api.delete(self.path)
        self.cluster.api.until(self.path, lambda pod: pod is None or pod["metadata"]["uid"] != self.uid)


class Pods:
    """A namespace of its own in *cluster*; leaving it deletes it with all that is in it."""

    def __init__(self, cluster: Kubernetes) -> None:
        self.cluster = cluster
        self.namespace = f"test-{secrets.token_hex(4)}"
        self._path = f"/api/v1/namespaces/{self.namespace}"

    def __enter__(self) -> Self:
        self.cluster.api.create("/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        self.cluster.api.until(f"{self._path}/serviceaccounts/default", bool)
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self.cluster.api.get(f"{self._path}/pods")["items"]:
            self._delete(f"{self._path}/pods/{pod['metadata']['name']}")
        self.cluster.api.delete(self._path)

    def run(
        self,
        name: str,
        *command: str,
        container: Mapping[str, Any] | None = None,
        annotations: Mapping[str, str] | None = None,
        beside: Sequence[Mapping[str, Any]] = (),
        **spec: object,
    ) -> Pod:
        """Start a pod and wait until it is ready; *container* adds to its first container, *beside* are its others.

        Without a *command* the first one sleeps.  It is ready when its process runs, or as its readinessProbe says.
        """
        words = list(command) or ["sleep", "infinity"]
        main = {"name": "main", "image": self.cluster.image, "command": words, **(container or {})}
        body = {
            "metadata": {"name": name, "annotations": dict(annotations or {})},
            "spec": {"containers": [main, *beside], "terminationGracePeriodSeconds": 0, **spec},
        }
        self.cluster.api.create(f"{self._path}/pods", body)
        return self.ready(name)

    def ready(self, name: str) -> Pod:
        """Wait until the pod *name* is ready."""
        path = f"{self._path}/pods/{name}"
        found = self.cluster.api.until(path, is_ready)
        assert found is not None
        return Pod(self.cluster, path, found)

    def _delete(self, path: str) -> None:
        try:
            self.cluster.api.delete(path)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise


def is_ready(pod: Object | None) -> bool:
    """Tell whether *pod* is ready."""
    conditions = pod["status"].get("conditions", ()) if pod else ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def listening(port: int) -> dict[str, object]:
    """Return what makes a container ready when it listens on *port*; kubelet asks every second."""
    return {"readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1}}
