"""What the kernel counted, taken into the ledger, and slots given back when they run out.

The order is what makes it safe to be killed anywhere: what an observation changed is kept before any
number is shown, and before anything that was observed is released.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

import structlog

from nodeagent.agent.enrolment import Enrolment
from nodeagent.agent.facts import Loss
from nodeagent.agent.roster import Roster
from nodeagent.agent.worker import Privileged, Worker
from nodeagent.bpf.layout import CLASSES, RESERVED
from nodeagent.errors import KernelError, StateError, UnreachableError
from nodeagent.ledger import Ledger, Limits, Naming
from nodeagent.model import Address, FlowKind, PodRecord, Slot
from nodeagent.policy import Configuration
from nodeagent.programmer.seam import CountingHealth, Freed
from nodeagent.state import Store

PERIOD: Final = 2.0
"""Seconds between two looks at the slots, if nobody asks."""
_MOST_AT_ONCE: Final = 1024
_MOST_FORGOTTEN_AT_ONCE: Final = 16
_RECALL_SECONDS: Final = 60.0


class SlotSource(Protocol):
    """Reads the slots of a descriptor that was passed to us."""

    def read(self) -> list[Slot]:
        """Return all slots that are not free."""

    def close(self) -> None:
        """Give the descriptor back."""


def boot_seconds() -> float:
    """Return seconds since the machine was started: no clock that anybody sets, and it outlives the agent."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Services(Protocol):
    """Knows what Services are called."""

    @property
    def is_asked(self) -> bool:
        """Whether anybody wants to know."""

    def name(self, address: Address, port: int) -> str | None:
        """Return the name that is known of an address."""

    def is_unknown(self, address: Address) -> bool:
        """Say whether an address may have a name that is not known."""

    def is_awaited(self, address: Address) -> bool:
        """Say whether its name may come in a moment."""

    async def learn(self, addresses: Iterable[Address]) -> bool:
        """Find out more, in about a second; say whether a name is another one than was told before."""


class Census:
    """Owns the ledger; *open_slots* makes a source of a descriptor."""

    def __init__(
        self,
        worker: Worker,
        enrolment: Enrolment,
        roster: Roster,
        store: Store,
        open_slots: Callable[[int], SlotSource],
    ) -> None:
        self._worker, self._enrolment, self._roster, self._store = worker, enrolment, roster, store
        self._open_slots = open_slots
        self._source: SlotSource | None = None
        self._configuration: Configuration | None = None
        self._records: dict[int, PodRecord] = {}
        self.ledger = Ledger(*_settings(roster.configuration), store.memory)
        self._recalled = dict(enrolment.known)
        self._recalled_until = boot_seconds() + _RECALL_SECONDS
        self.health = CountingHealth()
        self.lost_updates = Loss()
        self.services: Services | None = None

    async def open(self) -> None:
        """Begin to read what a programmer counts.

        Raises:
            KernelError: it counts nothing.
        """
        descriptor = await self._worker.ask(lambda p: p.slots())
        self.close()
        self._source = self._open_slots(descriptor)
        floors: dict[int, int] = {}
        numbers: dict[int, int] = {}
        for slot in self._source.read():
            floors[slot.key.pod] = max(slot.key.epoch, floors.get(slot.key.pod, 0))
            if slot.key.kind is FlowKind.OVERFLOW and slot.position < RESERVED:
                numbers[slot.key.pod] = slot.position // CLASSES
        self._enrolment.floors = floors
        self._store.adopt(numbers)

    def close(self) -> None:
        """Read no more."""
        if self._source:
            self._source.close()
        self._source = None

    async def tick(self) -> None:
        """Look, give slots back if they run out, and wait for the next time."""
        await self._learn()
        self.look()
        if not self._enrolment.problem:
            try:
                await self._reclaim()
            except UnreachableError:
                pass  # a new programmer will be asked
            except KernelError as error:
                structlog.get_logger().warning("slots cannot be reclaimed", error=str(error))
        await asyncio.sleep(PERIOD)

    async def _learn(self) -> None:
        """Find out what new destinations are called before they are shown by any name."""
        if self._source and self.services and self.services.is_asked:
            found = {slot.key.destination for slot in self._source.read() if slot.key.kind is FlowKind.FLOW}
            if await self.services.learn(found):
                self._configuration = None  # all flows get their names anew

    def look(self) -> None:
        """Take in what the kernel holds now: a millisecond or two for 10,000 slots."""
        now = boot_seconds()
        configuration = self._roster.configuration
        if configuration is not self._configuration:
            limits, naming = _settings(configuration)
            if names := self.services:
                naming = replace(naming, service=names.name, is_unknown=names.is_unknown)
            self.ledger.configure(limits, naming)
            self._configuration = configuration
        slots = self._source.read() if self._source else None
        if slots and (names := self.services) and names.is_asked:
            slots = [slot for slot in slots if not (self.ledger.is_new(slot) and _is_awaited(slot, names))]
        changes = self.ledger.observe(slots, self._current_records(now), now)
        with suppress(StateError):
            self._store.commit(changes, self.ledger.memory)

    def _current_records(self, now: float) -> dict[int, PodRecord]:
        """Return the records of all counted pods; equal ones are the same objects as before.

        Pods that an agent before us counted are taken as they were, until they had the time to be found again.
        """
        found: dict[int, PodRecord] = {}
        for pod in self._roster:
            if pod.counted.id:
                record, before = pod.record(), self._records.get(pod.counted.id)
                found[record.id] = before if before == record else record
                self._recalled.pop(record.id, None)
        if now > self._recalled_until:
            self._recalled.clear()
        found |= {pod: record for pod, record in self._recalled.items() if pod in self._enrolment.known}
        self._records = found
        return found

    async def _reclaim(self) -> None:
        self.health = await self._worker.ask(lambda p: p.counting_health())
        now = boot_seconds()
        self.lost_updates.note(self.health.lost_updates, now)
        free, capacity = self.health.capacity - self.health.entries, self.health.capacity
        for pod in list(self.ledger.abandoned(now))[:_MOST_FORGOTTEN_AT_ONCE]:
            await self._worker.insist(partial(_forget, pod))
        await self._take_over()
        releases = [found for found in self.ledger.releases(now) if found.target or not self._store.problem]
        releases = releases[:_MOST_AT_ONCE]
        if releases:
            freed = [Freed(*release) for release in releases]
            await self._worker.insist(lambda p: p.release(freed))
        victims = self.ledger.victims(free, capacity, now)[:_MOST_AT_ONCE]
        if victims:
            await self._worker.insist(lambda p: p.evict(victims))

    async def _take_over(self) -> None:
        """Keep what the slots of pods that have ended hold, so that slots and numbers are free for others."""
        closing = self.ledger.closing()[:_MOST_AT_ONCE]
        if closing and not self._store.problem:
            await self._worker.insist(lambda p: p.evict(closing))  # once more: they stand still when it returns
            self.ledger.settle(closing)
            self.look()


def _is_awaited(slot: Slot, names: Services) -> bool:
    return slot.key.kind is FlowKind.FLOW and names.is_awaited(slot.key.destination)


def _forget(pod: int, programmer: Privileged) -> None:
    programmer.forget(pod)


def _settings(configuration: Configuration) -> tuple[Limits, Naming]:
    ledger = configuration.settings.ledger
    return Limits(ledger.top_destinations, ledger.series_limit), Naming(configuration.ranges)
