"""The Kubernetes API in raw JSON, at the Unix socket of `kubectl proxy`: its requests are its administrator's.

No schema, no client library: a test sees what the API server sends.  Waiting is watching, always with a limit.
"""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

Object = dict[str, Any]
_PATIENCE = 60.0
_JSON, _MERGE_PATCH = "application/json", "application/merge-patch+json"


class ApiError(Exception):
    """The API server refused: its status code, and what it says."""

    def __init__(self, what: str, status: int, message: str) -> None:
        super().__init__(f"{what}: {status} {message}")
        self.status = status


class Api:
    """The API server's resources by path, such as `/api/v1/namespaces/default/pods`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, path: str, **query: str) -> Object:
        """Return the object or list at *path*."""
        return self._request("GET", path, query=query)

    def create(self, path: str, body: Object) -> Object:
        """Create *body* in the collection at *path*; return what became of it."""
        return self._request("POST", path, body)

    def patch(self, path: str, body: Object) -> Object:
        """Merge *body* into the object at *path*."""
        return self._request("PATCH", path, body, content_type=_MERGE_PATCH)

    def delete(self, path: str, *, grace: int = 0) -> Object:
        """Delete the object at *path*, with *grace* seconds for its processes."""
        return self._request("DELETE", path, query={"gracePeriodSeconds": str(grace)})

    def text(self, path: str, **query: str) -> str:
        """Return what is at *path* as text: a pod's log, `/readyz`."""
        return self._raw("GET", path, query=query).decode()

    def until(self, path: str, holds: Callable[[Object | None], object], patience: float = _PATIENCE) -> Object | None:
        """Watch the object at *path* until *holds*, called with it (None while there is none), is true; return it.

        TimeoutError, with the object as it was last, if that takes longer than *patience* seconds.
        """
        collection, _, name = path.rpartition("/")
        deadline = time.monotonic() + patience
        last: Object | None = None
        while time.monotonic() < deadline:
            # Again and again: the API server ends watches, and may itself be restarted meanwhile.
            for last in self._states(collection, name, deadline):
                if holds(last):
                    return last
        state = json.dumps(last.get("status") if last else None)
        raise TimeoutError(f"{path} is not what it should become within {patience:.0f} s; its status: {state}")

    def watch(self, path: str, patience: float, **query: str) -> Iterator[Object]:
        """Yield the events of the collection at *path* until *patience* seconds have passed or the server ends it."""
        query |= {"watch": "true", "timeoutSeconds": str(max(1, int(patience)))}
        connection = self._send("GET", path, query=query, patience=patience)
        try:
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise ApiError(f"WATCH {path}", answer.status, answer.read().decode())
            while line := answer.readline():
                yield json.loads(line)
        except TimeoutError:
            return
        finally:
            connection.close()

    def _states(self, collection: str, name: str, deadline: float) -> Iterator[Object | None]:
        """Yield the object *name* as it is, and as it changes; ends when a connection does."""
        only = {"fieldSelector": f"metadata.name={name}"}
        try:
            listed = self.get(collection, **only)
            yield next(iter(listed["items"]), None)
            version = listed["metadata"]["resourceVersion"]
            left = max(0.1, deadline - time.monotonic())
            for event in self.watch(collection, left, resourceVersion=version, **only):
                if event["type"] == "ERROR":
                    return
                yield None if event["type"] == "DELETED" else event["object"]
        except (ConnectionError, http.client.HTTPException):
            time.sleep(0.1)
        except ApiError as error:
            if error.status < http.client.INTERNAL_SERVER_ERROR:
                raise
            time.sleep(0.1)

    def _request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        query: dict[str, str] | None = None,
        content_type: str = _JSON,
    ) -> Object:
        answer: Object = json.loads(self._raw(method, path, body, query=query, content_type=content_type))
        return answer

    def _raw(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        query: dict[str, str] | None = None,
        content_type: str = _JSON,
    ) -> bytes:
        connection = self._send(method, path, body, query=query, content_type=content_type)
        try:
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status >= http.client.BAD_REQUEST:
            raise ApiError(f"{method} {path}", answer.status, data.decode(errors="replace"))
        return data

    def _send(  # noqa: PLR0913 - what an HTTP request consists of
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        query: dict[str, str] | None = None,
        content_type: str = _JSON,
        patience: float = _PATIENCE,
    ) -> http.client.HTTPConnection:
        connection = _UnixConnection(self._path, patience)
        target = f"{path}?{urlencode(query)}" if query else path
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, target, data, {"Content-Type": content_type})
        return connection


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, patience: float) -> None:
        super().__init__("localhost", timeout=patience)
        self._socket_path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._socket_path))
