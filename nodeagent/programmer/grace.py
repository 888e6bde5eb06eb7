"""Waiting for the kernel beside everything else: until all programs that ran at a moment have ended.

A grace period of RCU takes some 20 ms, on a busy node 80.  Who waits for one does nothing meanwhile, and a programmer
that does nothing keeps a pod that starts from starting.
"""

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from nodeagent.bpf import syscalls
from nodeagent.errors import BusyError

_MOST: Final = 1024


class Grace:
    """Grace periods by name; *wait* waits for one."""

    def __init__(self, wait: Callable[[], None] = syscalls.synchronize) -> None:
        self._wait = wait
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="grace")
        self._waiting: dict[Hashable, Future[None]] = {}

    def is_known(self, name: Hashable) -> bool:
        """Say whether one is under way, or is over, and nobody has taken leave of it."""
        return name in self._waiting

    def begin(self, name: Hashable) -> None:
        """Let one begin."""
        if len(self._waiting) >= _MOST:  # whoever began the first ones has not come back for them
            self._waiting.pop(next(iter(self._waiting)))
        self._waiting[name] = self._threads.submit(self._wait)

    def end(self, name: Hashable) -> None:
        """Take leave of one that is over.

        Raises:
            BusyError: it is not.
            OSError: the kernel has none.
        """
        if not self._waiting[name].done():
            raise BusyError("packets may be under way still: ask again in a moment")
        self._waiting.pop(name).result()

    def drop(self, name: Hashable) -> None:
        """Know no more of one, if it was begun."""
        self._waiting.pop(name, None)
