"""The two listeners.

Open to the cluster: ``/metrics``, ``/healthz``, ``/readyz``, and by UDP what ``nodeagent wait`` asks.  For those who
may look inside: the page at ``/``, and ``/api/v1``.  Bounded: small requests, few connections that only wait, one
rendering of the metrics a second however many ask.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

import structlog
from aiohttp import web

from nodeagent.agent.health import troubles
from nodeagent.agent.loop import Agent
from nodeagent.errors import InputError, printable
from nodeagent.web import api, asking, assets, looking
from nodeagent.web.api import AGENT, SNAPSHOTS, answer
from nodeagent.web.guard import add_headers, host_check, host_of
from nodeagent.web.scrape import Scrape
from nodeagent.web.snapshot import Snapshots

SCRAPE: web.AppKey[Scrape] = web.AppKey("scrape", Scrape)

_LARGEST_REQUEST = 16 * 1024
_IDLE_SECONDS = 30.0
_SHUTDOWN_SECONDS = 2.0
_BACKLOG = 64


@asynccontextmanager
async def serving(agent: Agent, metrics: str, inner: str) -> AsyncIterator[tuple[str, str]]:
    """Serve both listeners, given as ``ADDRESS:PORT``, for the length of the block; yield where they listen.

    Raises:
        InputError: somebody else listens there.
    """
    asked = None
    runners = [_runner(_open(agent)), _runner(_inner(agent, inner))]
    try:
        places = [await listen(runner, place) for runner, place in zip(runners, (metrics, inner), strict=True)]
        asked = await asking.listen(agent, places[0])
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


def _runner(app: web.Application) -> web.AppRunner:
    return web.AppRunner(
        app, access_log=None, keepalive_timeout=_IDLE_SECONDS, shutdown_timeout=_SHUTDOWN_SECONDS, handle_signals=False
    )


async def listen(runner: web.AppRunner, place: str) -> str:
    """Serve *runner* at ``ADDRESS:PORT`` (port 0: a free one); return where that is.

    Raises:
        InputError: the place is taken, or not ours.
    """
    await runner.setup()
    host, _, port = place.rpartition(":")
    try:
        await _site(runner, host.strip("[]"), int(port)).start()
    except OSError as error:
        raise InputError(
            f"cannot listen at {printable(place)}: {error.strerror or error}; see http in the configuration"
        ) from None
    address = runner.addresses[0]
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def _site(runner: web.AppRunner, host: str, port: int) -> web.BaseSite:
    """Return what listens there; ``::`` is every address of both families, and asyncio alone would leave out IPv4."""
    if host == "::" and socket.has_dualstack_ipv6():
        everywhere = socket.create_server(("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
        return web.SockSite(runner, everywhere, backlog=_BACKLOG)
    return web.TCPSite(runner, host, port, backlog=_BACKLOG, reuse_address=True)


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
