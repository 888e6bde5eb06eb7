"""What the peers of one process saw, in order of arrival.  An entry stands before its peer answers a single byte."""

import asyncio
from collections import deque
from dataclasses import dataclass

from tests.lab.wire import Greeting

_KEPT = 250_000


@dataclass(slots=True)
class Entry:
    """One accepted connection or one datagram; a connection's token comes with its first line."""

    proto: str
    greeting: Greeting
    token: str = ""


class Log:
    """The newest entries, and how many older ones had to go."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=_KEPT)
        self._seen = 0
        self._arrived: dict[str, asyncio.Event] = {}

    def add(self, proto: str, greeting: Greeting, token: str = "") -> Entry:
        """Write down an arrival."""
        entry = Entry(proto, greeting)
        self._entries.append(entry)
        self._seen += 1
        if token:
            self.name(entry, token)
        return entry

    def name(self, entry: Entry, token: str) -> None:
        """Write down the token of *entry* and wake whoever waits for it."""
        entry.token = token
        if waiting := self._arrived.pop(token, None):
            waiting.set()

    async def find(self, token: str, patience: float) -> list[object] | None:
        """Return the newest entry that carries *token*; None if none came within *patience* seconds."""
        found = self._find(token)
        if found is None and patience > 0:
            try:
                await asyncio.wait_for(self._arrived.setdefault(token, asyncio.Event()).wait(), patience)
            except TimeoutError:
                self._arrived.pop(token, None)
            found = self._find(token)
        return found

    def _find(self, token: str) -> list[object] | None:
        return next((_plain(entry) for entry in reversed(self._entries) if entry.token == token), None)

    def dump(self) -> dict[str, object]:
        """Return every entry that is kept, and the number of those that are not."""
        return {"entries": [_plain(entry) for entry in self._entries], "lost": self._seen - len(self._entries)}

    def forget(self) -> None:
        """Start again with an empty log."""
        self._entries.clear()
        self._seen = 0


def _plain(entry: Entry) -> list[object]:
    return [entry.proto, entry.token, entry.greeting.encode().decode()]
