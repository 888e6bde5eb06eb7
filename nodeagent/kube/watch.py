"""This node's pods, by one watch.

| what happens | what we do |
|---|---|
| at the start | wait for a random moment, so that a fleet does not begin at once |
| nothing is known | a list as a stream of objects; where the server knows no such thing, a list from its cache |
| a list is cut off | it counts for nothing |
| the server ends the watch, every 4 to 10 minutes | go on from where we were |
| 410: it has forgotten where we were | a new list, of which only the differences matter |
| 429, 503 with ``Retry-After`` | wait as long as it says, and a random while more |
| anything else | wait for a random while, up to a minute |
| silence | keep-alive notices a dead peer, missing bookmarks a dead server behind a live one |

Whatever fails, and for however long: what was known stays, and nothing is reported as gone.
"""

import asyncio
import random
import re
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import structlog

from nodeagent.errors import InputError, NodeagentError, printable
from nodeagent.kube.client import Client, ExpiredError, RequestError, Silence, UnavailableError
from nodeagent.kube.pacing import Backoff
from nodeagent.kube.store import Draft, PodStore, is_older
from nodeagent.kube.wire import Heard, Kind, read_event, read_list
from nodeagent.model import Snapshot
from nodeagent.policy import Keys

_PATH: Final = "/api/v1/pods"
_NODE_RE = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_UNKNOWN: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
"""What a server answers that does not stream lists."""
_SETTLED_SECONDS: Final = 5.0
"""A watch that lived so long was a good one."""
_MOST_CUT_STREAMS: Final = 3
"""So many lists that came as streams were cut off in a row: something in between does not like them."""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Seconds.

    ``shortest`` and ``longest``: of one watch.  ``silence``: without a word, where the server sends
    bookmarks, which it does every minute; where it sends none, a watch may be silent to its end, and
    ``grace`` longer.  A list may pause for ``grace``.
    """

    shortest: int = 240
    longest: int = 600
    silence: float = 100.0
    grace: float = 30.0


class PodWatch:
    """The pods of *node*; *keys* are those by which they are selected; *clock* counts seconds and never goes back."""

    def __init__(
        self,
        client: Client,
        node: str,
        keys: Keys,
        rhythm: Rhythm = Rhythm(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not _NODE_RE.fullmatch(node):
            raise InputError(f"'{printable(node)}' is not the name of a node")
        self._client, self._node, self._keys, self._rhythm, self._clock = client, node, keys, rhythm, clock
        self._store, self._backoff, self._news = PodStore(), Backoff(), asyncio.Event()
        self._cycle: asyncio.Task[None] | None = None
        self._version = ""
        """Where to go on from; "" for a list."""
        self._oldest = "0"
        """How old a list may be: "0" for any age, "" for no age at all."""
        self._is_streaming, self._begun_streams, self._has_bookmarks = True, 0, False
        self._heard_at = self._troubled_at = clock()
        self.problem: str | None = "the API server was not asked yet"
        """What is in the way, in words for people; None while the watch stands."""

    @property
    def snapshot(self) -> Snapshot | None:
        """All pods as they were last heard of; None before the first complete list: then nothing is known."""
        return self._store.snapshot

    @property
    def age(self) -> float:
        """Seconds since the server was last heard: an event, a bookmark, a list, or a watch that began."""
        return self._clock() - self._heard_at

    async def changed(self) -> Snapshot:
        """Wait until there is news, and return all pods; never before the first complete list."""
        while True:
            await self._news.wait()
            self._news.clear()
            if found := self._store.snapshot:
                return found

    def select(self, keys: Keys) -> None:
        """Keep these keys from now on; pods are listed anew if some were not kept before."""
        was_kept = keys.labels <= self._keys.labels and keys.annotations <= self._keys.annotations
        self._keys = keys
        if not was_kept:
            self._oldest, self._version = self._version or self._oldest, ""
            if self._cycle:
                self._cycle.cancel()

    async def run(self, jitter: float) -> None:
        """Watch until cancelled, beginning at a random moment of the next *jitter* seconds."""
        await asyncio.sleep(random.uniform(0, jitter))  # noqa: S311  # manners, no secret
        while True:
            self._cycle = asyncio.create_task(self._once())
            try:
                await asyncio.wait({self._cycle})
            finally:
                self._cycle.cancel()
                with suppress(asyncio.CancelledError):
                    await self._cycle

    # -- one watch ------------------------------------------------------------------------------

    async def _once(self) -> None:
        """List if need be, watch until the watch ends, and wait as long as its end asks for."""
        began = self._clock()
        try:
            if not self._version and not self._is_streaming:
                await self._list()
            await self._watch()
            if self._clock() - began < _SETTLED_SECONDS:
                raise UnavailableError("the API server ended the watch at once")
        except NodeagentError as error:
            wait = self._after(error, self._clock() - began)
            await asyncio.sleep(wait)
        else:
            self._backoff.reset()

    def _after(self, error: NodeagentError, lived: float) -> float:
        """Note what went wrong; return how long to wait before anything is asked again."""
        if lived >= _SETTLED_SECONDS:
            self._backoff.reset()
        if not self._version:
            if self._is_streaming and isinstance(error, RequestError) and error.status in _UNKNOWN:
                self._is_streaming = False  # an older server: a plain list, at once
                return 0
            self._list_failed(error)
        if isinstance(error, ExpiredError):
            # Not older than where we were: another server's cache may lag behind.
            self._oldest, self._version = self._version, ""
            structlog.get_logger().info("the watch has expired: pods are listed anew", error=str(error))
        else:
            self._trouble(str(error))
        return self._backoff.next(getattr(error, "retry_after", None))

    def _list_failed(self, error: NodeagentError) -> None:
        self._is_streaming = self._is_streaming and self._begun_streams < _MOST_CUT_STREAMS
        if isinstance(error, UnavailableError) and error.status == HTTPStatus.GATEWAY_TIMEOUT:
            self._oldest = ""  # nothing is as new as we asked for: etcd was restored from a backup

    async def _list(self) -> None:
        query = {"fieldSelector": f"spec.nodeName={self._node}"}
        if self._oldest:
            query |= {"resourceVersion": self._oldest, "resourceVersionMatch": "NotOlderThan"}
        version, pods = read_list(await self._client.request("GET", _PATH, query), self._keys)
        draft = Draft()
        for heard in pods:
            self._complain(heard)
            draft.take(heard)
        self._commit(draft, version)

    async def _watch(self) -> None:
        """Watch once; without a version to go on from, a list comes first, as a stream."""
        draft = None if self._version else Draft()
        seconds = random.randint(self._rhythm.shortest, self._rhythm.longest)  # noqa: S311  # manners, no secret
        silence = Silence(self._rhythm.grace)
        async with aclosing(self._client.lines(_PATH, self._query(seconds), silence)) as lines:
            async for line in lines:
                self._heard_at = self._clock()
                self._begun_streams += not line and draft is not None
                if line:
                    draft = self._take(read_event(line, self._keys), draft)
                if draft is None:
                    self._stands()
                    silence.seconds = self._rhythm.silence if self._has_bookmarks else seconds + self._rhythm.grace
        if draft is not None:
            raise UnavailableError("the API server ended a list before it was complete")

    def _query(self, seconds: int) -> dict[str, str]:
        query = {
            "watch": "true",
            "fieldSelector": f"spec.nodeName={self._node}",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
            "resourceVersion": self._version or self._oldest,
        }
        first = {} if self._version else {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        return query | first

    # -- what is heard --------------------------------------------------------------------------

    def _take(self, heard: Heard, draft: Draft | None) -> Draft | None:
        """Take in one event; return *draft*, or None once it is complete."""
        self._complain(heard)
        if draft is None:
            if heard.kind is Kind.BOOKMARK:
                self._mark(heard.version)
            before = self._store.changes
            self._store.take(heard)
            if heard.version and not is_older(heard.version, self._version):
                self._version = heard.version
            if self._store.changes != before:
                self._news.set()
            return None
        if not heard.ends_list:
            draft.take(heard)
            return draft
        self._commit(draft, heard.version)
        return None

    def _mark(self, version: str) -> None:
        """Take in a bookmark; one from before where we are says that etcd was restored from a backup."""
        self._has_bookmarks = True
        if is_older(version, self._version):
            self._version = ""
            raise ExpiredError(f"the API server has gone back in time, to {printable(version)}")

    def _commit(self, draft: Draft, version: str) -> None:
        before = self._store.changes
        differences = self._store.replace(draft)
        self._version, self._oldest, self._begun_streams = version, version, 0
        self._heard_at = self._clock()
        structlog.get_logger().info("pods were listed", pods=len(draft.heard), differences=differences)
        if self._store.changes != before:
            self._news.set()

    def _complain(self, heard: Heard) -> None:
        if heard.problem:
            structlog.get_logger().error("a pod cannot be read: its last good description stays", error=heard.problem)

    def _stands(self) -> None:
        if self.problem:
            seconds = round(self._clock() - self._troubled_at, 1)
            structlog.get_logger().info("the API server is being watched", node=self._node, after_seconds=seconds)
        self.problem = None

    def _trouble(self, problem: str) -> None:
        if self.problem is None:
            self._troubled_at = self._clock()
        if self.problem != problem:
            structlog.get_logger().warning("pods stay as they are", error=problem, attempts=self._backoff.failures + 1)
        self.problem = problem
