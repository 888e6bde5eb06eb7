"""Asks a running agent."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from nodeagent.errors import InputError, UnreachableError, printable

_SECONDS = 30.0
_LARGEST = 64 << 20
_OK, _BAD_REQUEST = 200, 400


def ask(api: str, path: str, parameters: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401  # it is JSON
    """Return the agent's answer to a GET of *path* at *api* (HOST:PORT).

    Raises:
        UnreachableError: no agent answers there.
        InputError: it does not understand the question.
    """
    query = f"?{urlencode(parameters)}" if parameters else ""
    answer = _get(api, path + query)
    try:
        found: Any = json.loads(answer.body) if answer.status in (_OK, _BAD_REQUEST) else None
    except ValueError as error:
        raise _unreachable(api, error) from None
    if answer.status == _BAD_REQUEST:
        raise InputError(printable(str(found.get("error")), 512))
    if answer.status != _OK:
        raise UnreachableError(
            f"what answers at {printable(api)} is no agent of ours: {answer.status} {printable(answer.reason)}"
        )
    return found


def fetch(api: str, path: str) -> bytes:
    """Return what is answered at *api* (HOST:PORT) to a GET of *path*, whatever its status.

    Raises:
        UnreachableError: nothing answers there.
    """
    return _get(api, path).body


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    reason: str
    body: bytes


def _get(api: str, path: str) -> _Answer:
    try:
        connection = http.client.HTTPConnection(api, timeout=_SECONDS)
        try:
            connection.request("GET", path, headers={"Host": "localhost"})
            answer = connection.getresponse()
            return _Answer(answer.status, answer.reason, answer.read(_LARGEST))
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unreachable(api, error) from None


def _unreachable(api: str, error: Exception) -> UnreachableError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UnreachableError(
        f"no agent answers at {printable(api)}: {printable(reason)}; "
        "is it running (nodeagent run), and is this its --api?"
    )


def ask_flows(api: str, parameters: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return all flows that match, however many pages they are."""
    flows: list[dict[str, Any]] = []
    offset: int | None = 0
    while offset is not None:
        page = ask(api, "/api/v1/flows", {**parameters, "offset": str(offset)})
        flows += page["flows"]
        offset = page["next"]
    return flows
