"""``/api/v1``: JSON for the command line, the page and scripts.  Reads only."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Final

from aiohttp import web

from nodeagent.agent import view
from nodeagent.agent.loop import Agent
from nodeagent.errors import InputError, printable
from nodeagent.ledger import LEAKS, Flow, Kind, kind_of
from nodeagent.model import Address, Connection, Protocol, Reason, Verdict
from nodeagent.policy.destination import ALLOWED, parse_destination
from nodeagent.policy.grammar import HIGHEST_ID
from nodeagent.web.download import FORMATS, download
from nodeagent.web.snapshot import Snapshots, ordered

AGENT: web.AppKey[Agent] = web.AppKey("agent", Agent)
SNAPSHOTS: web.AppKey[Snapshots] = web.AppKey("snapshots", Snapshots)

LARGEST_PAGE = 5000
"""Flows an answer; who wants more asks again with ``offset``."""

FILTERS = ("namespace", "pod", "container", "destination", "address", "protocol", "verdict", "reason")
"""Fields of a flow that a request may name a value of."""

POD_COLUMNS = (
    *("namespace", "pod", "uid", "mode", "state", "detail", "ruleset_id", "epoch", "age_seconds", "in_sync"),
    *("out_of_sync", "repairs", "counted_by", "containers", "rejected"),
    *("leaked_connections", "leaked_bytes", "recently_leaked_connections", "recently_leaked_bytes"),
)
"""What a file of pods holds."""

_FLAGS: Final[Mapping[str, bool]] = {"1": True, "true": True, "0": False, "false": False}
_LARGEST_NUMBER = 10**9
_AGE_RE = re.compile(r'"age_seconds": [0-9.]+')
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


async def get_flows(request: web.Request) -> web.StreamResponse:
    """Return ``{"flows": […], "total": N, "next": offset or null}``, filtered, sorted, a page at a time.

    ``since=SECONDS`` leaves out what was not active within them.  With ``download=csv|json`` return
    all that match, as a file.
    """
    only(request, {*FILTERS, "leaks", "since", "kind", "search", "sort", "offset", "limit", "download"})
    found = _filtered(request, _flows(request))
    if key := request.query.get("sort"):
        found.sort(key=_sort_key(key.removeprefix("-")), reverse=key.startswith("-"))
    if file := file_wanted(request):
        return await download(request, "flows", file, Flow._fields, (flow._asdict() for flow in found))
    offset, limit = _number(request, "offset", 0), min(_number(request, "limit", LARGEST_PAGE), LARGEST_PAGE)
    page = found[offset : offset + limit]
    following = offset + limit if offset + limit < len(found) else None
    rows = ", ".join([json.dumps(flow._asdict()) for flow in page])  # one at a time: dicts of all take megabytes
    return _tagged_text(request, f'{{"flows": [{rows}], "total": {len(found)}, "next": {json.dumps(following)}}}')


async def get_pods(request: web.Request) -> web.StreamResponse:
    """Return ``{"node": {…}, "pods": […]}``; with ``download=csv|json`` the pods as a file."""
    only(request, {"download"})
    agent = request.app[AGENT]
    agent.census.look()
    if file := file_wanted(request):
        return await download(request, "pods", file, POD_COLUMNS, map(flat, view.pods(agent)))
    return tagged(request, {"node": view.node(agent), "pods": view.pods(agent)})


async def get_explain(request: web.Request) -> web.Response:
    """Return what happens to a connection of a pod, why, and what was observed of it."""
    only(request, {"pod", "to", "uid", "gid", "interface"})
    name = request.query.get("pod", "")
    if not _NAME_RE.fullmatch(name):
        raise bad(f"pod={printable(name)}: give NAMESPACE/NAME")
    interface = request.query.get("interface", "")
    if interface and not _INTERFACE_RE.fullmatch(interface):
        raise bad(f"interface={printable(interface)}: not the name of a device")
    try:
        connection = Connection(
            *_destination(request.query.get("to", "")),
            _optional(request, "uid"),
            _optional(request, "gid"),
            interface or "eth0",
        )
        namespace, _, pod = name.partition("/")
        seen = request.app[SNAPSHOTS].take(request).flows
        return tagged(request, view.explain(request.app[AGENT], namespace, pod, connection, seen, own=not interface))
    except InputError as error:
        raise bad(str(error)) from None


def _destination(text: str) -> tuple[Address, int, Protocol]:
    try:
        return parse_destination(text)
    except ValueError:
        raise InputError(f"to={printable(text)}: {ALLOWED}") from None


async def get_config(request: web.Request) -> web.Response:
    """Return the configuration in force."""
    only(request, set())
    return tagged(request, view.configuration(request.app[AGENT]))


def tagged(request: web.Request, value: object) -> web.Response:
    """Return *value* as JSON with an ETag; 304 where the client has it.

    The tag does not cover ages: they grow by themselves, and a client can add.
    """
    return _tagged_text(request, json.dumps(value))


def _tagged_text(request: web.Request, text: str) -> web.Response:
    stable = _AGE_RE.sub("", text)
    tag = f'W/"{hashlib.blake2b(stable.encode(), digest_size=12).hexdigest()}"'
    if tag in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers={"ETag": tag})
    return web.Response(text=text + "\n", content_type="application/json", headers={"ETag": tag})


def answer(value: object, status: int = 200) -> web.Response:
    """Return *value* as JSON, ASCII only."""
    return web.Response(text=json.dumps(value) + "\n", content_type="application/json", status=status)


def _flows(request: web.Request) -> Sequence[Flow]:
    """Return the flows that were active within ``since``; all of them are those of a moment, ready at once."""
    if "since" not in request.query:
        return request.app[SNAPSHOTS].take(request).flows
    return ordered(view.flows(request.app[AGENT], _number(request, "since", 0)))


def _filtered(request: web.Request, flows: Iterable[Flow]) -> list[Flow]:
    wanted = _wanted(request)
    only_leaks = _flag(request, "leaks")
    kind, text = _kind(request), request.query.get("search", "").lower()
    return [
        flow
        for flow in flows
        if all(getattr(flow, name) == value for name, value in wanted)
        and (not only_leaks or flow.reason in LEAKS)
        and (not kind or kind_of(flow.verdict, flow.reason) is kind)
        and (not text or _mentions(flow, text))
    ]


def _wanted(request: web.Request) -> list[tuple[str, str]]:
    """Return the fields that a request names a value of, as the ledger writes such values."""
    found = list[tuple[str, str]]()
    for name in FILTERS:
        text = request.query.get(name)
        if text is None:
            continue
        if name == "pod" and "/" in text:  # as tables show it, and explain takes it
            namespace, _, text = text.partition("/")
            found.append(("namespace", namespace))
        found.append((name, _CANONICAL[name](text) if name in _CANONICAL else text))
    return found


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise bad(f"address={printable(text)}: give an IP address") from None


def _member(name: str, kind: type[Verdict] | type[Reason]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in list(kind):
            raise bad(f"{name}={printable(text)}: give one of {', '.join(kind)}")
        return text

    return check


_CANONICAL: Final[Mapping[str, Callable[[str], str]]] = {
    "address": _address,
    "protocol": str.lower,
    "verdict": _member("verdict", Verdict),
    "reason": _member("reason", Reason),
}


def _flag(request: web.Request, name: str) -> bool:
    text = request.query.get(name, "0")
    if text not in _FLAGS:
        raise bad(f"{name}={printable(text)}: give one of {', '.join(_FLAGS)}")
    return _FLAGS[text]


def _kind(request: web.Request) -> Kind | None:
    name = request.query.get("kind")
    try:
        return Kind(name) if name is not None else None
    except ValueError:
        raise bad(f"kind={printable(str(name))}: give one of {', '.join(Kind)}") from None


def _mentions(flow: Flow, text: str) -> bool:
    """Say whether *text*, in small letters, is in what names the flow: ``ns/pod``, ``address:port`` and so on."""
    names = (
        f"{flow.namespace}/{flow.pod} {flow.container} {flow.destination} {flow.address}:{flow.port}/{flow.protocol}"
    )
    return text in f"{names} {flow.verdict} {flow.reason}".lower()


def _sort_key(name: str) -> Callable[[Flow], Any]:
    if name not in Flow._fields:
        raise bad(f"sort={printable(name)}: give one of {', '.join(Flow._fields)}")
    return lambda flow: (getattr(flow, name) is not None, getattr(flow, name))  # None is never compared


def flat(pod: view.Json) -> view.Json:
    """Return what the API says of a pod as one row without lists."""
    leaks = pod["leaks"]
    return {
        **pod,
        "containers": " ".join(pod["containers"]),
        "rejected": "; ".join(each["message"] for each in pod["rejected"]),
        "leaked_connections": leaks["connections"],
        "leaked_bytes": leaks["bytes"],
        "recently_leaked_connections": leaks["recent_connections"],
        "recently_leaked_bytes": leaks["recent_bytes"],
    }


def file_wanted(request: web.Request) -> str | None:
    """Return the kind of file that is asked for; None if an answer is."""
    kind = request.query.get("download")
    if kind is not None and kind not in FORMATS:
        raise bad(f"download={printable(kind)}: give one of {', '.join(FORMATS)}")
    return kind


def only(request: web.Request, known: set[str]) -> None:
    """Refuse parameters that are not *known*."""
    unknown = sorted(set(request.query) - known)
    if unknown:
        raise bad(f"{printable(unknown[0])}: no such parameter; known are {', '.join(sorted(known)) or 'none'}")


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < len(str(_LARGEST_NUMBER))):
        raise bad(f"{name}={printable(text)}: give a number")
    return int(text)


def _optional(request: web.Request, name: str) -> int | None:
    number = _number(request, name, 0) if name in request.query else None
    if number is not None and number > HIGHEST_ID:
        raise bad(f"{name}: give a number up to {HIGHEST_ID}")
    return number


def bad(message: str) -> web.HTTPBadRequest:
    """Return what refuses a request, to be raised."""
    return web.HTTPBadRequest(text=json.dumps({"error": message}) + "\n", content_type="application/json")
