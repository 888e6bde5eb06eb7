"""Rules that are not as they should be: at once where the kernel tells, else by the next sweep.

Neither repairs anything: pods that look different go into the queue, and a step finds out.
"""

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import structlog

from nodeagent.agent.facts import Facts
from nodeagent.agent.pod import Pod, Stage
from nodeagent.agent.queue import Queue
from nodeagent.agent.roster import Roster
from nodeagent.agent.worker import Worker
from nodeagent.errors import InputError, KernelError, RefusedError
from nodeagent.model import PodKey
from nodeagent.netns.nsid import LISTEN_ALL_NSID, SOL_NETLINK
from nodeagent.programmer.seam import Choice, Expected

_AT_ONCE: Final = 16
"""Pods a question to the programmer: others are served in between."""
_PAUSE: Final = 0.01
"""Seconds from an event to the look that it causes: a change comes as several."""
_MOST_EVENTS: Final = 4096
_LARGEST: Final = 65536


class Drift:
    """Looks for it among the pods of *roster*."""

    def __init__(self, worker: Worker, roster: Roster, queue: Queue[PodKey], facts: Facts) -> None:
        self._worker, self._roster, self._queue, self._facts = worker, roster, queue, facts
        self._socket: socket.socket | None = None

    async def sweep(self) -> None:
        """Compare all pods with what they should hold; the rest get a step anyway."""
        settled = [(pod, expected) for pod in self._roster if (expected := self._expected(pod))]
        known = {pod.key for pod, _ in settled}
        for pod in self._roster:
            if pod.key not in known:
                self._queue.add(pod.key)
        for start in range(0, len(settled), _AT_ONCE):
            part = settled[start : start + _AT_ONCE]
            await self._worker.rush.let_by()
            answers = await self._ask([expected for _, expected in part])
            for (pod, _), is_good in zip(part, answers, strict=True):
                if not is_good:
                    self._queue.add(pod.key)

    async def measure(self) -> None:
        """Find out how full the connection tracking of our pods is."""
        for pod in self._roster:
            if pod.is_settled:
                await self._worker.rush.let_by()
                with suppress(InputError, KernelError, RefusedError):
                    pod.tracked = await self._tracked(pod)

    async def knock(self, *, everywhere: bool) -> None:
        """Find out whether somebody listens where our pods' connections are sent; *everywhere*: also where one did."""
        for pod in self._roster:
            if pod.is_settled and pod.proxy_port and (everywhere or pod.listens is None or pod.unanswered):
                await self._worker.rush.let_by()
                before = pod.unanswered
                with suppress(InputError, KernelError, RefusedError):
                    pod.listens = frozenset(await self._listening(pod))
                if pod.unanswered != before:
                    log = structlog.get_logger().bind(pod=str(pod.key))
                    log.warning("not answered", why=pod.unanswered) if pod.unanswered else log.info("answered")

    async def _listening(self, pod: Pod) -> list[int]:
        return await self._worker.ask(lambda p: p.listening(pod.proven, pod.proxy_port))

    async def _tracked(self, pod: Pod) -> tuple[int, int]:
        return await self._worker.ask(lambda p: p.tracked(pod.proven))

    async def _ask(self, pods: list[Expected]) -> list[bool]:
        try:
            return await self._worker.ask(lambda p: p.sweep(pods))
        except (InputError, RefusedError):  # one of them is not there any more, and each one's step finds out
            return [False] * len(pods)

    def _expected(self, pod: Pod) -> Expected | None:
        ruleset = pod.wanted.ruleset
        if not pod.is_settled or ruleset is None or ruleset.id != pod.ruleset_id or pod.foreign:
            return None
        return pod.expected(Choice(self._roster.configuration.backend))

    # -- events ---------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Open the socket that hears of changes.

        Raises:
            KernelError: this kernel has none.
        """
        self.close()
        descriptor = await self._worker.ask(lambda p: p.events())
        self._socket = socket.socket(fileno=descriptor)
        self._socket.settimeout(0)
        asyncio.get_running_loop().add_reader(descriptor, self._hear)

    def close(self) -> None:
        """Hear no more."""
        if self._socket:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        self._socket = None

    def _hear(self) -> None:
        """Queue the pods that something happened to; all of them if events were lost."""
        numbers = set(self._numbers())
        for pod in self._roster:
            if pod.watched in numbers and pod.stage is not Stage.SKIPPED:
                self._queue.add(pod.key, _PAUSE)

    def _numbers(self) -> Iterator[int]:
        for _ in range(_MOST_EVENTS):
            try:
                if self._socket is None:
                    return
                _, ancillary, _, _ = self._socket.recvmsg(_LARGEST, socket.CMSG_SPACE(4))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._facts.events_lost += 1
                structlog.get_logger().warning(
                    "nft events were lost: looking everywhere", error=os.strerror(errno.ENOBUFS)
                )
                yield from (pod.watched for pod in self._roster if pod.watched is not None)
                continue
            for level, kind, data in ancillary:
                if (level, kind) == (SOL_NETLINK, LISTEN_ALL_NSID):
                    yield int.from_bytes(data[:4], sys.byteorder, signed=True)
