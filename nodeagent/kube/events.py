"""Events about pods, for whoever looks at them with kubectl: what is wrong, where, and what is allowed.

Promises: :meth:`Events.report` never waits and never fails; of one pod and kind at most one request is
made in ten minutes, of all together about one a second; what was reported meanwhile is told
in the next one, if it still is so.  An Event that says the same as the last one becomes a series.

Refuses to insist: an Event that the server does not take is logged, and not sent again.  Two verbs are
enough, create and patch; an agent that was started again finds its own Events by their names.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Final

import structlog

from nodeagent.errors import NodeagentError, printable
from nodeagent.kube.client import Client, RequestError, UnavailableError
from nodeagent.model import PodKey
from nodeagent.policy import Resolution

PERIOD: Final = 600.0
"""Seconds between two requests about the same pod and kind."""

_PAUSE: Final = 1.0
_MOST_TOPICS: Final = 1024
_LONGEST_NOTE: Final = 1000  # bytes; the API server takes 1024
_LONGEST_NAME: Final = 230  # of 253, the rest is a dot and a hash
_CONTROLLER: Final = "nodeagent.io/agent"


class Kind(StrEnum):
    """What an Event is about: its ``reason``, a closed set."""

    ANNOTATION_REFUSED = "AnnotationRefused"
    ANNOTATION_UNKNOWN = "AnnotationUnknown"
    NOT_INTERCEPTED = "NotIntercepted"


_ACTIONS: Final = {
    Kind.ANNOTATION_REFUSED: "ReadAnnotations",
    Kind.ANNOTATION_UNKNOWN: "ReadAnnotations",
    Kind.NOT_INTERCEPTED: "Intercept",
}


@dataclass(slots=True)
class _Topic:
    """What is to be said of one pod and kind.

    ``sent`` is the note of the Event that the server has, and ``count`` how often it was observed.
    """

    pod: PodKey
    kind: Kind
    note: str
    due: float
    is_new: bool = True
    sent: str = ""
    began: str = ""
    count: int = 0


class Events:
    """Tells the API server; *node* is where we are; *clock* counts seconds and never goes back."""

    def __init__(self, client: Client, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._node, self._clock = client, node, clock
        self._topics: dict[tuple[PodKey, Kind], _Topic] = {}
        self._news = asyncio.Event()

    def report(self, pod: PodKey, kind: Kind, note: str) -> None:
        """Let it be known that *note* is so, soon; reporting it again costs nothing."""
        topic = self._topics.get((pod, kind))
        if topic is None:
            self._make_room()
            topic = self._topics[pod, kind] = _Topic(pod, kind, "", self._clock())
        topic.note, topic.is_new = printable(note, _LONGEST_NOTE), True
        self._news.set()

    def withdraw(self, pod: PodKey, kind: Kind) -> None:
        """Let it be so no longer: what was not sent yet is not sent any more."""
        if topic := self._topics.get((pod, kind)):
            topic.is_new = False

    def judge(self, pod: PodKey, resolution: Resolution) -> None:
        """Report what is wrong with a pod's annotations, or that nothing is."""
        refused = "; ".join(rejection.message for rejection in resolution.rejected)
        keys = resolution.unknown_keys
        unknown = "; ".join(warning for warning in resolution.warnings if keys and warning.startswith(keys))
        for kind, note in ((Kind.ANNOTATION_REFUSED, refused), (Kind.ANNOTATION_UNKNOWN, unknown)):
            if note:
                self.report(pod, kind, note)
            else:
                self.withdraw(pod, kind)

    async def run(self) -> None:
        """Send what was reported, until cancelled."""
        while True:
            self._news.clear()
            topic = min((t for t in self._topics.values() if t.is_new), key=lambda t: t.due, default=None)
            wait = None if topic is None else topic.due - self._clock()
            if topic is not None and wait is not None and wait <= 0:
                await self._send(topic)
                await asyncio.sleep(_PAUSE)
                continue
            try:
                async with asyncio.timeout(wait):
                    await self._news.wait()
            except TimeoutError:
                continue

    def _make_room(self) -> None:
        """Forget pods that nobody reported on for a while; their next Event may come early."""
        if len(self._topics) >= _MOST_TOPICS:
            oldest = sorted(self._topics, key=lambda key: self._topics[key].due)
            for key in oldest[: _MOST_TOPICS // 4]:
                del self._topics[key]

    async def _send(self, topic: _Topic) -> None:
        topic.is_new, topic.due = False, self._clock() + PERIOD
        try:
            if topic.note == topic.sent:
                await self._repeat(topic)
            else:
                await self._create(topic)
        except UnavailableError as error:
            topic.is_new = True
            topic.due = self._clock() + max(error.retry_after or 0, _PAUSE * 30)
            structlog.get_logger().info("no event yet", pod=str(topic.pod), error=str(error))
        except NodeagentError as error:
            structlog.get_logger().warning("no event", pod=str(topic.pod), note=topic.note, error=str(error))

    async def _create(self, topic: _Topic) -> None:
        topic.began, topic.count = _now(), 1
        try:
            await self._client.request("POST", _path(topic.pod), body=self._event(topic))
        except RequestError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            await self._patch(topic)  # made by an agent before us
        topic.sent = topic.note

    async def _repeat(self, topic: _Topic) -> None:
        """Make a series of an Event that is there; create it again if it has expired."""
        try:
            await self._patch(topic)
        except RequestError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            await self._create(topic)

    async def _patch(self, topic: _Topic) -> None:
        series = {"series": {"count": topic.count + 1, "lastObservedTime": _now()}}
        path = f"{_path(topic.pod)}/{_name(topic)}"
        await self._client.request("PATCH", path, body=series, kind="merge-patch+json")
        topic.count += 1

    def _event(self, topic: _Topic) -> dict[str, object]:
        pod = topic.pod
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": _name(topic), "namespace": pod.namespace},
            "eventTime": topic.began,
            "reportingController": _CONTROLLER,
            "reportingInstance": f"nodeagent-{self._node}"[:128],
            "action": _ACTIONS[topic.kind],
            "reason": topic.kind.value,
            "regarding": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": pod.namespace,
                "name": pod.name,
                "uid": pod.uid,
            },
            "note": topic.note,
            "type": "Warning",
        }


def _path(pod: PodKey) -> str:
    return f"/apis/events.k8s.io/v1/namespaces/{pod.namespace}/events"


def _name(topic: _Topic) -> str:
    """Return the Event's name: the same for what is the same, whoever asks."""
    said = f"{topic.pod.uid} {topic.kind.value} {topic.note}"
    short = topic.pod.name[:_LONGEST_NAME].rstrip("-.")
    return f"{short}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
