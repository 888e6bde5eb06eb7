"""``/api/v1``: JSON for the command line, the page and scripts.  Reads only."""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from aiohttp import web

from nodeagent.agent import view
from nodeagent.agent.loop import Agent
from nodeagent.errors import InputError, printable
from nodeagent.ledger import LEAKS, Flow
from nodeagent.model import Address, Connection, Protocol
from nodeagent.policy.destination import ALLOWED, parse_destination
from nodeagent.policy.grammar import HIGHEST_ID

AGENT: web.AppKey[Agent] = web.AppKey("agent", Agent)

LARGEST_PAGE = 5000
"""Flows an answer; who wants more asks again with ``offset``."""

FILTERS = ("namespace", "pod", "container", "destination", "address", "protocol", "verdict", "reason")
"""Fields of a flow that a request may name a value of."""

_LARGEST_NUMBER = 10**9
_NAME_RE = re.compile(r"[a-z0-9.-]{1,253}/[a-z0-9.-]{1,253}")
_INTERFACE_RE = re.compile(r"[!-.0-~]{1,15}")


def routes() -> list[web.RouteDef]:
    """Return the API's routes."""
    return [
        web.get("/api/v1/flows", get_flows),
        web.get("/api/v1/pods", get_pods),
        web.get("/api/v1/explain", get_explain),
        web.get("/api/v1/config", get_config),
    ]


async def get_flows(request: web.Request) -> web.Response:
    """Return ``{"flows": […], "total": N, "next": offset or null}``, filtered, sorted, a page at a time.

    ``since=SECONDS`` leaves out what was not active within them.
    """
    _only(request, {*FILTERS, "leaks", "since", "sort", "offset", "limit"})
    within = _number(request, "since", 0) if "since" in request.query else float("inf")
    found = _filtered(request, view.flows(request.app[AGENT], within))
    found.sort(key=lambda flow: tuple("" if field is None else str(field) for field in flow[:9]))
    if key := request.query.get("sort"):
        found.sort(key=_sort_key(key.lstrip("-")), reverse=key.startswith("-"))
    offset, limit = _number(request, "offset", 0), min(_number(request, "limit", LARGEST_PAGE), LARGEST_PAGE)
    page = found[offset : offset + limit]
    following = offset + limit if offset + limit < len(found) else None
    return answer({"flows": [flow._asdict() for flow in page], "total": len(found), "next": following})


async def get_pods(request: web.Request) -> web.Response:
    """Return ``{"node": {…}, "pods": […]}``."""
    _only(request, set())
    agent = request.app[AGENT]
    agent.census.look()
    return answer({"node": view.node(agent), "pods": view.pods(agent)})


async def get_explain(request: web.Request) -> web.Response:
    """Return what happens to a connection of a pod, why, and what was observed of it."""
    _only(request, {"pod", "to", "uid", "gid", "interface"})
    name = request.query.get("pod", "")
    if not _NAME_RE.fullmatch(name):
        raise _bad(f"pod={printable(name)}: give NAMESPACE/NAME")
    interface = request.query.get("interface", "")
    if interface and not _INTERFACE_RE.fullmatch(interface):
        raise _bad(f"interface={printable(interface)}: not the name of a device")
    try:
        connection = Connection(
            *_destination(request.query.get("to", "")),
            _optional(request, "uid"),
            _optional(request, "gid"),
            interface or "eth0",
        )
        namespace, _, pod = name.partition("/")
        return answer(view.explain(request.app[AGENT], namespace, pod, connection, own=not interface))
    except InputError as error:
        raise _bad(str(error)) from None


def _destination(text: str) -> tuple[Address, int, Protocol]:
    try:
        return parse_destination(text)
    except ValueError:
        raise InputError(f"to={printable(text)}: {ALLOWED}") from None


async def get_config(request: web.Request) -> web.Response:
    """Return the configuration in force."""
    _only(request, set())
    return answer(view.configuration(request.app[AGENT]))


def answer(value: object, status: int = 200) -> web.Response:
    """Return *value* as JSON, ASCII only."""
    return web.Response(text=json.dumps(value) + "\n", content_type="application/json", status=status)


def _filtered(request: web.Request, flows: Iterable[Flow]) -> list[Flow]:
    wanted = {name: request.query[name] for name in FILTERS if name in request.query}
    only_leaks = request.query.get("leaks") in ("1", "true")
    return [
        flow
        for flow in flows
        if all(getattr(flow, name) == value for name, value in wanted.items())
        and (not only_leaks or flow.reason in LEAKS)
    ]


def _sort_key(name: str) -> Callable[[Flow], Any]:
    if name not in Flow._fields:
        raise _bad(f"sort={printable(name)}: give one of {', '.join(Flow._fields)}")
    return lambda flow: (getattr(flow, name) is not None, getattr(flow, name))  # None is never compared


def _only(request: web.Request, known: set[str]) -> None:
    unknown = sorted(set(request.query) - known)
    if unknown:
        raise _bad(f"{printable(unknown[0])}: no such parameter; known are {', '.join(sorted(known)) or 'none'}")


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < len(str(_LARGEST_NUMBER))):
        raise _bad(f"{name}={printable(text)}: give a number")
    return int(text)


def _optional(request: web.Request, name: str) -> int | None:
    number = _number(request, name, 0) if name in request.query else None
    if number is not None and number > HIGHEST_ID:
        raise _bad(f"{name}: give a number up to {HIGHEST_ID}")
    return number


def _bad(message: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=json.dumps({"error": message}) + "\n", content_type="application/json")
