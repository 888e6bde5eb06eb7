"""Pods of a directory of manifests, whose every edit is followed."""

import asyncio
import time
from collections.abc import Callable

import structlog

from nodeagent.agent.waiting import readable
from nodeagent.errors import InputError
from nodeagent.files.directory import PodDirectory
from nodeagent.model import Snapshot

_UNFINISHED_SECONDS = 0.5
_PAUSE_SECONDS = 0.02


class Manifests:
    """The directory at *path*, looked at every *period* seconds at least; *tell* is told what it says."""

    def __init__(
        self,
        path: str,
        tell: Callable[[Snapshot], None],
        period: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._tell, self._period, self._clock = path, tell, period, clock
        self.problem: str | None = "the pods' directory was not read yet"
        self._read_at = clock()

    @property
    def age(self) -> float:
        """Seconds since the directory was last read."""
        return self._clock() - self._read_at

    async def run(self) -> None:
        """Follow it until cancelled."""
        source = PodDirectory(self._path, self._clock)
        try:
            unread = True
            while True:
                if unread or await asyncio.to_thread(source.heard) or source.is_unfinished:
                    unread = not await self._scan(source) and unread
                await readable(source.fileno(), _UNFINISHED_SECONDS if source.is_unfinished else self._period())
                await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            source.close()

    async def _scan(self, source: PodDirectory) -> bool:
        try:
            snapshot = await asyncio.to_thread(source.scan)
        except InputError as error:
            if self.problem != str(error):
                structlog.get_logger().error("the pods stay as they are", error=str(error))
            self.problem = str(error)
            return False
        self.problem, self._read_at = None, self._clock()
        self._tell(snapshot)
        return True
