"""What the page asks beside ``/api/v1``'s lists: the node at a glance, one pod in full, and what words mean."""

import re
from typing import Final

from aiohttp import web

from nodeagent.agent import view
from nodeagent.agent.detail import pod_in_full
from nodeagent.decide import ROWS
from nodeagent.errors import InputError, printable
from nodeagent.ledger import LEAKS, MEANINGS
from nodeagent.web.api import AGENT, SNAPSHOTS, bad, only, tagged
from nodeagent.web.overview import overview

_NAME_RE: Final = re.compile(r"[a-z0-9.-]{1,253}")


def routes() -> list[web.RouteDef]:
    """Return the routes."""
    return [
        web.get("/api/v1/overview", get_overview),
        web.get("/api/v1/pods/{namespace}/{name}", get_pod),
        web.get("/api/v1/words", get_words),
    ]


async def get_overview(request: web.Request) -> web.Response:
    """Return the node, its egress by verdict and reason, and who talks to whom; of one namespace or pod if asked."""
    only(request, {"namespace", "pod"})
    agent, snapshot = request.app[AGENT], request.app[SNAPSHOTS].take(request)
    wanted = {name: request.query[name] for name in ("namespace", "pod") if name in request.query}
    flows = [flow for flow in snapshot.flows if all(getattr(flow, name) == value for name, value in wanted.items())]
    if not wanted and "overview" not in snapshot.made:
        snapshot.made["overview"] = overview(flows)
    made = overview(flows) if wanted else snapshot.made["overview"]
    namespaces = sorted({flow.namespace for flow in snapshot.flows} | {pod.key.namespace for pod in agent.roster})
    head = {"node": view.node(agent), "pods": view.roll_call(agent), "namespaces": namespaces}
    return tagged(request, {**head, "flows": len(flows), "sums": made})


async def get_pod(request: web.Request) -> web.Response:
    """Return one pod in full."""
    only(request, set())
    namespace, name = (request.match_info[part] for part in ("namespace", "name"))
    if not (_NAME_RE.fullmatch(namespace) and _NAME_RE.fullmatch(name)):
        raise bad(f"{printable(namespace)}/{printable(name)}: not the name of a pod")
    try:
        return tagged(request, pod_in_full(request.app[AGENT], namespace, name))
    except InputError as error:
        raise bad(str(error)) from None


async def get_words(request: web.Request) -> web.Response:
    """Return what reasons mean, and the precedence table: what does not change while the agent runs."""
    only(request, set())
    reasons = {reason.value: {**meaning._asdict(), "leak": reason in LEAKS} for reason, meaning in MEANINGS.items()}
    return tagged(request, {"reasons": reasons, "rows": {str(number): row for number, row in ROWS.items()}})
