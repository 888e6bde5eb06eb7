"""``http.md``: every route of both listeners, with what it accepts."""

import asyncio
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from docs.source.markdown import code, page, table
from nodeagent.agent.health import CONDITIONS
from nodeagent.ledger import Flow
from nodeagent.web import server

if TYPE_CHECKING:
    from nodeagent.agent.loop import Agent

FLOW_FIELDS: Final[Mapping[str, str]] = {
    "namespace": "the pod's",
    "pod": "its name",
    "container": "which of its containers; null where nobody knows it",
    "destination": "a named range, else the address, or `other`",
    "address": "the address that was dialled; null where it was not told apart",
    "port": "the port that was dialled; null likewise",
    "protocol": "`tcp`, `udp`, …",
    "verdict": "what happened: `intercepted`, `bypassed`, `proxy`",
    "reason": "why",
    "connections": "begun; for UDP, distinct sockets and destinations",
    "packets": "that left",
    "bytes": "IP bytes that left, headers included",
    "payload": "what the application sent, retransmissions included",
    "received_bytes": "IP bytes that came back",
}

POD_FIELDS: Final[Mapping[str, str]] = {
    "namespace": "the pod's",
    "pod": "its name",
    "uid": "Kubernetes' UID",
    "source": "where it is known from",
    "late": "whether it ran before its rules stood",
    "mode": "`enforce`, `observe`, `disabled`",
    "state": "`intercepted`, `observed`, `refused`, `pending`, `skipped`, `draining`",
    "detail": "why it is in that state; empty where there is nothing to say",
    "ruleset_id": "of the rules that stand; null if there are none",
    "epoch": "number of the rule set that was applied; odd while it is being replaced",
    "age_seconds": "for how long it has been in force",
    "in_sync": "whether the kernel holds what it should; null if it should hold nothing",
    "out_of_sync": "whether it should hold rules, and does not",
    "repairs": "how often its rules were put right",
    "answered": "whether its sidecar listens at the proxy port; null where nothing is redirected, or nobody has looked yet",
    "counted_by": "`cgroup`, `netns`, or null",
    "guard": "the wire guard on its veth",
    "containers": "names that are known",
    "rejected": "annotations that were refused",
    "leaks": "connections and bytes, since the agent's start and in the last 10 minutes",
}


def http() -> str:
    """Return the page."""
    return page("HTTP", _INTRODUCTION, *_listeners(), *_shapes())


def routes() -> Iterator[tuple[str, web.AbstractRoute, web.Application]]:
    """Yield each route of both listeners, as it is served."""
    agent = cast("Agent", None)  # routes are known before there is one
    for name, app in (("open", server._open(agent)), ("inner", server._inner(agent, "127.0.0.1:9641"))):  # noqa: SLF001
        for route in app.router.routes():
            if route.method == "GET":
                yield name, route, app


def _listeners() -> Iterator[str]:
    for name, text in _LISTENERS.items():
        rows = [_row(route, app) for listener, route, app in routes() if listener == name]
        yield f"## {text.partition(':')[0]}\n\n{text.partition(': ')[2]}"
        yield table(("path", "parameters", "returns"), rows)


def _row(route: Any, app: web.Application) -> tuple[str, str, str]:  # noqa: ANN401  # aiohttp's own
    text = inspect.getdoc(route.handler) or _WITHOUT_WORDS[route.resource.canonical]
    path = route.resource.canonical
    return code(path), ", ".join(map(code, _parameters(route, app, path))), re.sub(r"\s+", " ", text).replace("``", "`")


def _parameters(route: Any, app: web.Application, path: str) -> list[str]:  # noqa: ANN401
    """Return what the handler accepts: it says so to who asks for anything else."""
    if not path.startswith("/api/"):
        return []
    request = make_mocked_request("GET", f"{path}?no-such-parameter=1", app=app)
    try:
        asyncio.run(route.handler(request))
    except web.HTTPBadRequest as answer:
        known = json.loads(answer.text or "")["error"].partition("known are ")[2]
        return [] if known == "none" else known.split(", ")
    raise AssertionError(f"{path} takes any parameter")


def _shapes() -> Iterator[str]:
    yield "## A flow\n\nOne of `flows` in `/api/v1/flows`, and of `nodeagent flows -o json`."
    yield table(("field", "is"), [(code(name), FLOW_FIELDS[name]) for name in Flow._fields])
    yield "## A pod\n\nOne of `pods` in `/api/v1/pods`, and in `nodeagent status -o json`."
    yield table(("field", "is"), [(code(name), text) for name, text in POD_FIELDS.items()])
    yield "## Conditions\n\nWhat `/readyz` and `nodeagent_trouble` may name: " + ", ".join(map(code, CONDITIONS)) + "."


_LISTENERS: Final = {
    "open": "Open to the cluster: `http.metrics` of the [configuration](configuration.md), default `[::]:9640`. No traffic of anybody is told apart by address here beyond the cap of the metrics.",
    "inner": "For those who may look inside: `http.ui`, default `127.0.0.1:9641`, reached by `kubectl port-forward`. It answers only to a Host header that names a loopback address or its own.",
}

_WITHOUT_WORDS: Final = {
    "/": "The web page.",
    "/page.js": "The page's program.",
    "/page.css": "How the page looks.",
    "/icon.svg": "The page's icon.",
    "/licenses.txt": "The licenses of what the page is made of.",
    "/metrics": "The [metrics](metrics.md), in the format that `Accept` prefers.",
}

_INTRODUCTION = """
Two listeners, both read-only. Answers are JSON unless it says otherwise; an unknown parameter, or a value that makes no sense, is 400 with `{"error": …}`.
"""
