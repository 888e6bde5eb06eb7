"""What every answer and every request has to pass.

The inner listener answers only if the Host header names a loopback address or the address that it
listens on: a web page elsewhere that has its own name resolve to 127.0.0.1 gets nothing.  There
is no CORS: no page of another origin reads an answer.  Our own page may load and ask only what this
listener has, and no text may become markup or code in it (trusted types, and no policy to make them).
"""

from collections.abc import Collection
from ipaddress import ip_address

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "nodeagent",
    "X-Content-Type-Options": "nosniff",
}


async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Add :data:`HEADERS` to *response*."""
    response.headers.update(HEADERS)


def host_check(names: Collection[str]) -> Middleware:
    """Return a middleware that refuses requests for a host that is neither loopback nor one of *names*."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = host_of(request.headers.get("Host", ""))
        if not (is_loopback(host) or host in names):
            raise web.HTTPForbidden(text="this listener is for localhost: use kubectl port-forward\n")
        return await handler(request)

    return check


def host_of(header: str) -> str:
    """Return the host of a Host header, without port and brackets.

    >>> host_of("127.0.0.1:9641"), host_of("[::1]:80"), host_of("[::1]"), host_of("localhost")
    ('127.0.0.1', '::1', '::1', 'localhost')
    """
    host = header.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Say whether *host* is this machine, spelt so that no name server is asked.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "localhost.evil.example", "")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
