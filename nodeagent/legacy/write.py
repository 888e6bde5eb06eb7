"""Change one table at a time: read, prepare, read again, replace, give the counters back.

Promises: a table is replaced only if it reads right before as it did when the replacement was
prepared; what strangers' rules had counted is added to them again.  A process killed between
those two steps leaves strangers' counters at zero, and every rule in its place.
"""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from nodeagent.errors import BusyError
from nodeagent.legacy.entries import Table, masked
from nodeagent.legacy.splice import Layered, carried_counters, put_together, take_apart
from nodeagent.legacy.xtables import Kernel

_ATTEMPTS: Final = 20


@dataclass(frozen=True, slots=True)
class Replacement:
    """A table ready for the kernel, and its entries' origins for the counters."""

    table: Table
    layered: Layered


Prepared = Mapping[Table, Replacement | None]
"""By the table that is found, masked or not: what to replace it by; None: it holds the right thing."""


def prepare(current: Table, change: Callable[[Layered], Layered]) -> Replacement | None:
    """Return what *change* makes of *current*, None if that is the same.

    Raises:
        KernelError, RefusedError: as *change* and the layout of *current* have it.
    """
    layered = change(take_apart(current))
    table = put_together(layered)
    return None if masked(table) == masked(current) else Replacement(table, layered)


class TableChange:
    """A change that shall be made to one table, whatever else is in it."""

    def __init__(  # the last two save work, and no more
        self,
        kernel: Kernel,
        name: str,
        change: Callable[[Layered], Layered],
        prepared: Prepared | None = None,
        pristine: Table | None = None,
    ) -> None:
        """Change nothing yet; *prepared* saves work where a table is found as it has it.

        *pristine* is what a table that does not exist yet will be once somebody opens it.  It
        is replaced unread, for the kernel refuses if it has another number of entries.
        """
        self._kernel = kernel
        self._name = name
        self._change = change
        self._prepared = dict(prepared or {})
        self._pristine = pristine

    def is_made(self) -> bool:
        """Say whether the table holds the right thing; write nothing, but refuse what cannot be made."""
        return self._find(self._kernel.read(self._name))[1] is None

    def make(self) -> None:
        """Make the change, unless the table holds the right thing already.

        Raises:
            BusyError: the table was another one each time it was read.
        """
        for _ in range(_ATTEMPTS):
            current = self._pristine or self._kernel.read(self._name)
            self._pristine = None
            known, replacement = self._find(current)
            if not known:
                continue  # preparing took a while: read again, then act at once
            if replacement is None:
                return
            try:
                counters = self._kernel.replace(replacement.table, current.number)
            except BlockingIOError:
                continue
            self._give_back(replacement.layered, counters)
            return
        raise BusyError(
            f"IPv{self._kernel.family} table {self._name} was changed by others {_ATTEMPTS} times meanwhile: try again"
        )

    def _find(self, current: Table) -> tuple[bool, Replacement | None]:
        """Return whether the replacement was prepared before, and the replacement."""
        key = current if current in self._prepared else masked(current)
        known = key in self._prepared
        if not known:
            self._prepared[key] = prepare(current, self._change)
        return known, self._prepared[key]

    def _give_back(self, layered: Layered, counters: bytes) -> None:
        if not counters.strip(b"\0"):
            return
        try:
            self._kernel.add_counters(self._name, carried_counters(layered, counters))
        except OSError as error:
            # Somebody who takes no lock has replaced the table since: which rule counted what is lost with it.
            if error.errno != errno.EINVAL:
                raise
