"""An API server that holds state, over real HTTP, and can be told to misbehave.

Pods and Events, lists, watches, bookmarks, streaming lists, versions that grow, a history that can be compacted.  What
of it the agent relies on is tested against the real one as well (`test_contract.py`).
"""

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

Object = dict[str, Any]

_HOUSEKEEPING: Final = 0.02


@dataclass
class Faults:
    """What goes wrong with requests for pods, until it is taken back; numbers count down."""

    refusals: int = 0
    """So many requests are answered with `status` and `headers`."""
    status: int = 429
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    cut_after: int | None = None
    """A list, or a stream of one, ends after so many objects, without a word."""
    delay: float = 0.0
    """Seconds before any answer."""
    is_mute: bool = False
    """Watches say nothing, neither events nor bookmarks, and stay open."""
    ends_at_once: bool = False
    """Watches end right after they began."""
    no_streams: bool = False
    """Streaming lists are not known here."""


class FakeServer:
    """Serves on 127.0.0.1; `url` says where."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.pods: dict[str, Object] = {}
        self.events: dict[str, Object] = {}
        self.services: dict[str, tuple[str, str]] = {}
        """Namespace and name, by address."""
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.url = ""
        self.bookmark_seconds = 0.1
        self.compacted = 0
        self._numbers = itertools.count(101)
        self._version = 100
        self._history: list[tuple[int, str, Object]] = []
        self._tell = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    # -- what tests do to it --------------------------------------------------------------------

    async def start(self) -> None:
        """Serve, where it served before if it did."""
        port = int(self.url.rpartition(":")[2]) if self.url else 0
        self._runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Serve no more; connections are closed."""
        if self._runner:
            await self._runner.cleanup()
        self._runner = None

    async def put(self, pod: Object) -> Object:
        """Create or replace a pod."""
        name = _name(pod)
        kind = "MODIFIED" if name in self.pods else "ADDED"
        pod.setdefault("metadata", {}).setdefault("uid", f"uid-{name}")
        await self._record(kind, pod)
        self.pods[name] = pod
        return pod

    async def drop(self, name: str) -> None:
        """Delete a pod."""
        await self._record("DELETED", self.pods.pop(name))

    def compact(self) -> None:
        """Forget the past: who asks for it is told 410."""
        self.compacted, self._history = self._version, []

    async def replay(self, *events: tuple[str, Object]) -> None:
        """Send what may have been sent before, as it is, to all watches."""
        async with self._tell:
            self._history += [(self._version, kind, pod) for kind, pod in events]
            self._tell.notify_all()

    @property
    def lists(self) -> list[dict[str, str]]:
        """The queries of all lists so far, streamed ones included."""
        return [q for m, p, q in self.requests if (m, p) == ("GET", "/api/v1/pods") and not _is_resumed(q)]

    # -- what it serves -------------------------------------------------------------------------

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._faulty])
        app.add_routes(
            [
                web.get("/api/v1/pods", self._pods),
                web.post("/api/v1/namespaces/{namespace}/pods", self._create_pod),
                web.patch("/api/v1/namespaces/{namespace}/pods/{name}", self._patch_pod),
                web.patch("/api/v1/namespaces/{namespace}/pods/{name}/status", self._patch_pod),
                web.delete("/api/v1/namespaces/{namespace}/pods/{name}", self._delete_pod),
                web.get("/apis/networking.k8s.io/v1/ipaddresses/{name}", self._address),
                web.get("/apis/events.k8s.io/v1/namespaces/{namespace}/events", self._list_events),
                web.post("/apis/events.k8s.io/v1/namespaces/{namespace}/events", self._create_event),
                web.patch("/apis/events.k8s.io/v1/namespaces/{namespace}/events/{name}", self._patch_event),
            ]
        )
        return app

    @web.middleware
    async def _faulty(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.requests.append((request.method, request.path, dict(request.query)))
        faults = self.faults
        if faults.delay:
            await asyncio.sleep(faults.delay)
        if faults.refusals:
            faults.refusals -= 1
            return web.Response(status=faults.status, headers=faults.headers, text=faults.body)
        return await handler(request)

    async def _pods(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        node = re.fullmatch(r"spec\.nodeName=(.+)", query["fieldSelector"])
        assert node
        if query.get("watch") == "true":
            if query.get("sendInitialEvents") == "true" and self.faults.no_streams:
                return _status(422, "Invalid", "sendInitialEvents: Forbidden: unless the WatchList feature gate is on")
            return await self._watch(request, node[1])
        items = [pod for pod in self.pods.values() if pod["spec"].get("nodeName") == node[1]]
        body = json.dumps({"kind": "PodList", "metadata": {"resourceVersion": str(self._version)}, "items": items})
        if self.faults.cut_after is None:
            return web.Response(text=body, content_type="application/json")
        return await _cut_off(request, body)

    async def _watch(self, request: web.Request, node: str) -> web.StreamResponse:
        query = request.query
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        seen = int(query.get("resourceVersion") or 0)
        if query.get("sendInitialEvents") == "true":
            seen = self._version
            if not await self._initial(answer, node):
                assert request.transport
                request.transport.abort()
                return answer
        elif seen < self.compacted:
            expired = {
                "kind": "Status",
                "code": 410,
                "reason": "Expired",
                "message": f"too old resource version: {seen}",
            }
            await _send(answer, "ERROR", expired)
            return answer
        position = sum(1 for version, _, _ in self._history if version <= seen)
        try:
            async with asyncio.timeout(float(query["timeoutSeconds"])):
                while not self.faults.ends_at_once:
                    position = await self._news(answer, node, position)
        except (TimeoutError, ConnectionError):
            pass  # its time is over, or its client has gone
        return answer

    async def _initial(self, answer: web.StreamResponse, node: str) -> bool:
        pods = [pod for pod in self.pods.values() if pod["spec"].get("nodeName") == node]
        for number, pod in enumerate(pods):
            if number == self.faults.cut_after:
                return False
            await _send(answer, "ADDED", pod)
        await _send(answer, "BOOKMARK", _bookmark(self._version, **{"k8s.io/initial-events-end": "true"}))
        return True

    async def _news(self, answer: web.StreamResponse, node: str, position: int) -> int:
        """Send what is new since *position*, or a bookmark after a while; return the new position."""
        async with self._tell:
            while self.faults.is_mute:
                await self._tell.wait()
            try:
                async with asyncio.timeout(self.bookmark_seconds):
                    await self._tell.wait_for(lambda: len(self._history) > position)
            except TimeoutError:
                await _send(answer, "BOOKMARK", _bookmark(self._version))
            news, position = self._history[position:], len(self._history)
        for _, kind, pod in news:
            if pod["spec"].get("nodeName") == node:
                await _send(answer, kind, pod)
        return position

    async def _record(self, kind: str, pod: Object) -> None:
        self._version = next(self._numbers)
        pod["metadata"]["resourceVersion"] = str(self._version)
        async with self._tell:
            self._history.append((self._version, kind, json.loads(json.dumps(pod))))
            self._tell.notify_all()

    # -- writing --------------------------------------------------------------------------------

    async def _create_pod(self, request: web.Request) -> web.Response:
        pod = await request.json()
        pod["metadata"]["namespace"] = request.match_info["namespace"]
        return web.json_response(await self.put(pod), status=201)

    async def _patch_pod(self, request: web.Request) -> web.Response:
        pod = _merged(self.pods[request.match_info["name"]], await request.json())
        return web.json_response(await self.put(pod))

    async def _delete_pod(self, request: web.Request) -> web.Response:
        await self.drop(request.match_info["name"])
        return web.json_response({})

    async def _address(self, request: web.Request) -> web.Response:
        address = request.match_info["name"]
        if address not in self.services:
            return _status(404, "NotFound", f'ipaddresses.networking.k8s.io "{address}" not found')
        namespace, name = self.services[address]
        parent = {"group": "", "resource": "services", "namespace": namespace, "name": name}
        return web.json_response({"kind": "IPAddress", "metadata": {"name": address}, "spec": {"parentRef": parent}})

    async def _list_events(self, _request: web.Request) -> web.Response:
        return web.json_response({"items": list(self.events.values())})

    async def _create_event(self, request: web.Request) -> web.Response:
        event = await request.json()
        name = _name(event)
        if name in self.events:
            return _status(409, "AlreadyExists", name)
        if len(event["note"].encode()) > 1024:
            return _status(422, "Invalid", "note")
        self.events[name] = event
        return web.json_response(event, status=201)

    async def _patch_event(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.events:
            return _status(404, "NotFound", name)
        self.events[name] = _merged(self.events[name], await request.json())
        return web.json_response(self.events[name])


@asynccontextmanager
async def serving() -> AsyncIterator[FakeServer]:
    """Serve for the length of the block."""
    server = FakeServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def _is_resumed(query: dict[str, str]) -> bool:
    return query.get("watch") == "true" and "sendInitialEvents" not in query


def _name(item: Object) -> str:
    return str(item["metadata"]["name"])


def _bookmark(version: int, **annotations: str) -> Object:
    return {"kind": "Pod", "metadata": {"resourceVersion": str(version), "annotations": annotations or None}}


def _merged(old: Object, patch: Object) -> Object:
    """RFC 7396."""
    found = dict(old)
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = _merged(found.get(key) or {}, value) if isinstance(value, dict) else value
    return found


def _status(code: int, reason: str, message: str) -> web.Response:
    body = {"kind": "Status", "code": code, "reason": reason, "message": message}
    return web.json_response(body, status=code)


async def _send(answer: web.StreamResponse, kind: str, item: Object) -> None:
    await answer.write(json.dumps({"type": kind, "object": item}).encode() + b"\n")


async def _cut_off(request: web.Request, body: str) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Length": str(len(body))})
    await answer.prepare(request)
    await answer.write(body[: len(body) // 2].encode())
    assert request.transport
    request.transport.close()
    return answer
