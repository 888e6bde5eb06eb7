"""The two listeners.

Open to the cluster: ``/metrics``, ``/healthz``, ``/readyz``, and by UDP what ``nodeagent wait`` asks.  For those who
may look inside: the page at ``/``, and ``/api/v1``.  Bounded: small requests, one rendering of the metrics a second
however many ask, and few connections: where there are too many, the oldest one is closed, so that whoever opens
connections and says nothing keeps nobody out.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Final

import structlog
from aiohttp import web
from aiohttp.http import HttpProcessingError

from nodeagent.agent.health import troubles
from nodeagent.agent.loop import Agent
from nodeagent.errors import InputError, printable
from nodeagent.web import api, asking, assets, looking
from nodeagent.web.api import AGENT, SNAPSHOTS, answer
from nodeagent.web.guard import add_headers, host_check, host_of
from nodeagent.web.scrape import Scrape
from nodeagent.web.snapshot import Snapshots

SCRAPE: web.AppKey[Scrape] = web.AppKey("scrape", Scrape)

MOST_CONNECTIONS: Final = 64
"""Of each listener.  Kubelet, Prometheus and people need a handful."""

_LARGEST_REQUEST = 16 * 1024
_LARGEST_HEADER = 8190
_MOST_HEADERS = 32
"""A request that has not ended is kept.  With the 128 that aiohttp allows it takes up to 1 MB."""
_IDLE_SECONDS = 30.0
_SHUTDOWN_SECONDS = 2.0
_BACKLOG = 64


def _is_ours(record: logging.LogRecord) -> bool:
    """Say whether a fault is ours to tell: whoever sends what is no request would fill the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_LOG: Final = logging.getLogger(__name__)
_LOG.addFilter(_is_ours)


@asynccontextmanager
async def serving(agent: Agent, metrics: str, inner: str) -> AsyncIterator[tuple[str, str]]:
    """Serve both listeners, given as ``ADDRESS:PORT``, for the length of the block; yield where they listen.

    Raises:
        InputError: somebody else listens there.
    """
    asked = None
    runners = [runner_of(_open(agent)), runner_of(_inner(agent, inner))]
    try:
        places = [await listen(runner, place) for runner, place in zip(runners, (metrics, inner), strict=True)]
        asked = asking.listen(agent, places[0])
        structlog.get_logger().info("serving", metrics=places[0], inner=places[1])
        yield places[0], places[1]
    finally:
        if asked:
            asked.close()
        await asyncio.gather(*(runner.cleanup() for runner in runners))


def _open(agent: Agent) -> web.Application:
    app = web.Application(client_max_size=_LARGEST_REQUEST)
    app[AGENT], app[SCRAPE] = agent, Scrape(agent)
    app.add_routes([web.get("/metrics", _metrics), web.get("/healthz", _healthz), web.get("/readyz", _readyz)])
    app.on_response_prepare.append(add_headers)
    return app


def _inner(agent: Agent, place: str) -> web.Application:
    app = web.Application(client_max_size=_LARGEST_REQUEST, middlewares=[host_check({host_of(place)})])
    app[AGENT], app[SNAPSHOTS] = agent, Snapshots(agent)
    app.add_routes([*assets.routes(assets.load()), *api.routes(), *looking.routes()])
    app.on_response_prepare.append(add_headers)
    return app


def runner_of(app: web.Application) -> web.AppRunner:
    """Return what serves *app* to whoever comes, within bounds."""
    return web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=_IDLE_SECONDS,
        shutdown_timeout=_SHUTDOWN_SECONDS,
        handle_signals=False,
        logger=_LOG,
        max_field_size=_LARGEST_HEADER,
        max_headers=_MOST_HEADERS,
    )


async def listen(runner: web.AppRunner, place: str) -> str:
    """Serve *runner* at ``ADDRESS:PORT`` (port 0: a free one); return where that is.

    Raises:
        InputError: the place is taken, or not ours.
    """
    await runner.setup()
    host, _, port = place.rpartition(":")
    try:
        await _Site(runner, _socket(host.strip("[]"), int(port))).start()
    except OSError as error:
        raise InputError(
            f"cannot listen at {printable(place)}: {error.strerror or error}; see http in the configuration"
        ) from None
    address = runner.addresses[0]
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def _socket(host: str, port: int) -> socket.socket:
    """Return what listens there; ``::`` is every address of both families, and asyncio alone would leave out IPv4."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    sock = socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LARGEST_REQUEST)  # of connections: what one read may bring
    return sock


class _Site(web.SockSite):
    """A socket of which at most :data:`MOST_CONNECTIONS` are open; but for those that come at the same moment."""

    async def start(self) -> None:
        await web.BaseSite.start(self)
        self._server = await asyncio.get_running_loop().create_server(self._welcome, sock=self._sock, backlog=_BACKLOG)

    def _welcome(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server  # noqa: S101  # a site's runner has one
        here = [connection for connection in server.connections if connection.transport]
        for oldest in here[: max(0, len(here) + 1 - MOST_CONNECTIONS)]:
            oldest.force_close()
        return server()


async def _metrics(request: web.Request) -> web.Response:
    return request.app[SCRAPE].answer(request)


async def _healthz(_request: web.Request) -> web.Response:
    """Alive: the loop answers."""
    return web.Response(text="ok\n")


async def _readyz(request: web.Request) -> web.Response:
    """Ready, or why not; what deserves attention is named in either case."""
    found = troubles(request.app[AGENT])
    is_ready = not any(trouble.fatal for trouble in found)
    return answer({"ready": is_ready, "reasons": [asdict(trouble) for trouble in found]}, 200 if is_ready else 503)
