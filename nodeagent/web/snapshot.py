"""All flows as of one moment, made once for everybody who looks at about the same time.

A client says with ``Cache-Control: max-age=SECONDS`` how old an answer may be that it accepts; one
that says nothing gets the present.  What nobody asks for any more is dropped.
"""

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from nodeagent.agent import view
from nodeagent.agent.loop import Agent
from nodeagent.ledger import Flow

OLDEST: Final = 5.0
"""Seconds that a snapshot may be old, whatever a client accepts."""

_MAX_AGE_RE = re.compile(r"(?:^|[ ,])max-age=([0-9]{1,6})(?:$|[ ,])")


@dataclass(frozen=True)
class Snapshot:
    """Flows in the order of their fields; ``made`` keeps what was made of them, by name."""

    taken: float
    flows: Sequence[Flow]
    made: dict[str, object] = field(default_factory=dict)


class Snapshots:
    """Takes snapshots of what *agent* knows, and has at most one."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._last: Snapshot | None = None

    def take(self, request: web.Request) -> Snapshot:
        """Return a snapshot that is as young as *request* wants it."""
        now = time.monotonic()
        if self._last is None or now - self._last.taken >= accepted_age(request.headers.get("Cache-Control", "")):
            self._last = None  # two at a time are megabytes too many
            self._last = Snapshot(now, ordered(view.flows(self._agent)))
            asyncio.get_running_loop().call_later(OLDEST, self._drop, now)
        return self._last

    def _drop(self, taken: float) -> None:
        """Forget the snapshot of *taken*, if it is still the last; the timer itself must not keep it."""
        if self._last and self._last.taken == taken:
            self._last = None


def accepted_age(header: str) -> float:
    """Return how many seconds old an answer may be for who sends this Cache-Control header.

    >>> [accepted_age(header) for header in ("max-age=1", "no-transform, max-age=9999", "", "max-age=x")]
    [1.0, 5.0, 0.0, 0.0]
    """
    found = _MAX_AGE_RE.search(header)
    return min(float(found[1]), OLDEST) if found else 0.0


def ordered(flows: Iterable[Flow]) -> list[Flow]:
    """Return *flows* in the order of their fields; sorted pod by pod, because keys take as much memory as flows."""
    pods: dict[tuple[str, str], list[Flow]] = {}
    for flow in flows:
        pods.setdefault(flow[:2], []).append(flow)
    for each in pods.values():
        each.sort(key=in_order)
    return [flow for name in sorted(pods) for flow in pods[name]]


def in_order(flow: Flow) -> tuple[str, ...]:
    """Return what to sort flows by: their fields, as text."""
    return tuple("" if value is None else str(value) for value in flow[:9])
