"""Asks a running agent."""

import http.client
import json
from collections.abc import Mapping
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
    name = printable(api)
    query = f"?{urlencode(parameters)}" if parameters else ""
    try:
        connection = http.client.HTTPConnection(api, timeout=_SECONDS)
        try:
            connection.request("GET", path + query, headers={"Host": "localhost"})
            answer = connection.getresponse()
            body = answer.read(_LARGEST)
        finally:
            connection.close()
        found: Any = json.loads(body) if answer.status in (_OK, _BAD_REQUEST) else None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreachableError(
            f"no agent answers at {name}: {printable(reason)}; is it running (nodeagent run), and is this its --api?"
        ) from None
    if answer.status == _BAD_REQUEST:
        raise InputError(printable(str(found.get("error")), 512))
    if answer.status != _OK:
        raise UnreachableError(
            f"what answers at {name} is no agent of ours: {answer.status} {printable(answer.reason)}"
        )
    return found


def ask_flows(api: str, parameters: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return all flows that match, however many pages they are."""
    flows: list[dict[str, Any]] = []
    offset: int | None = 0
    while offset is not None:
        page = ask(api, "/api/v1/flows", {**parameters, "offset": str(offset)})
        flows += page["flows"]
        offset = page["next"]
    return flows
