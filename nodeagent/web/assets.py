"""The page's files, as its build made them (``make page``); without them, a page that says how to make them.

They are few and small, are read once, and their names are the routes: no path of a request reaches the file system.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

BUILT: Final = Path(__file__).parent / "static"
"""Where ``nodeagent/web/page/build.mjs`` puts them."""

TYPES: Final = {
    "index.html": "text/html",
    "page.js": "text/javascript",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
    "licenses.txt": "text/plain",
}
"""All files of the page."""

NOT_BUILT: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>nodeagent: the page was not built</title>
<h1>The page was not built</h1>
<p>This agent runs from a checkout in which nobody built its page. In the checkout, run</p>
<pre>make page</pre>
<p>and start the agent again. Wheels and images always have the page. What it shows is here as JSON:</p>
<ul>
<li><a href="api/v1/flows">api/v1/flows</a>: who talked to whom; filter by any field, <code>?leaks=1</code>
<li><a href="api/v1/pods">api/v1/pods</a>: the pods of this node, and the node itself
<li><code>api/v1/explain?pod=NAMESPACE/NAME&amp;to=IP:PORT</code>: what happens to a connection, and why
<li><a href="api/v1/config">api/v1/config</a>: the configuration in force
</ul>
"""


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, as it is served."""

    body: bytes
    content_type: str


def load(folder: Path = BUILT) -> Mapping[str, Asset]:
    """Return the page's files by name; where one is missing, the page that says so, alone."""
    try:
        return {name: Asset((folder / name).read_bytes(), kind) for name, kind in TYPES.items()}
    except OSError:
        return {"index.html": Asset(NOT_BUILT.encode(), "text/html")}


def routes(assets: Mapping[str, Asset]) -> list[web.RouteDef]:
    """Return a route for each file; the page itself is at ``/``."""
    return [web.get("/" if name == "index.html" else f"/{name}", _sender(asset)) for name, asset in assets.items()]


def _sender(asset: Asset) -> Handler:
    async def send(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=asset.body, content_type=asset.content_type, charset="utf-8")

    return send
