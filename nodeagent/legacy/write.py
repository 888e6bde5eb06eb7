"""Change tables one at a time: read, prepare, read again, replace, give the counters back.

Promises: a table is replaced only if it reads right before as it did when the replacement was
prepared; what strangers' rules had counted is added to them again.  A process killed between
those two steps leaves strangers' counters at zero, and every rule in its place.  Where one of
several changes fails, what the others added to a netns without rules of ours is taken back.
"""

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from nodeagent.errors import BusyError, KernelError, NodeagentError
from nodeagent.legacy.entries import LAYOUTS, Table, masked
from nodeagent.legacy.splice import Layered, carried_counters, put_together, splice, take_apart
from nodeagent.legacy.xtables import Kernel

_ATTEMPTS: Final = 20
_WITHOUT_OURS: Final = partial(splice, ours=None)


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
        is replaced unread, for the kernel refuses if it has another number of entries.  What it
        would not notice is a chain's policy.  Between the look that found no table and the
        replacement lie some 100 microseconds; whoever opens the table and sets a policy just
        then does it without iptables' lock, which we hold, and would as well lose what he does
        between our reading of a table and its replacement: the kernel compares no contents.
        """
        self._kernel = kernel
        self._name = name
        self._change = change
        self._prepared = dict(prepared or {})
        self._pristine = pristine
        self._replaced: Table | None = None

    @property
    def label(self) -> str:
        """The table, as people call it."""
        return f"{LAYOUTS[self._kernel.family].prefix} {self._name}"

    @property
    def is_done(self) -> bool:
        """Whether :meth:`make` has replaced the table, also if it failed after that."""
        return self._replaced is not None

    @property
    def was_first(self) -> bool:
        """Whether there was nothing of ours in the table that it replaced."""
        return self._replaced is not None and prepare(self._replaced, _WITHOUT_OURS) is None

    def undo(self) -> None:
        """Remove all of ours from the table, whatever else others have made of it meanwhile."""
        back = TableChange(self._kernel, self._name, _WITHOUT_OURS)
        try:
            back.make()
        except OSError:  # counters that cannot be given back are no reason to leave rules
            if not back.is_done:
                raise

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
            self._replaced = current
            self._give_back(replacement.layered, counters)
            return
        raise BusyError(f"table {self.label} was changed by others {_ATTEMPTS} times meanwhile: try again")

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


def make_all(changes: Sequence[TableChange]) -> None:
    """Make *changes* in order; where one fails, take back those before it if nothing of ours stood there.

    Taking back removes rules that have redirected for less than a millisecond; what they
    caught is reset.  Where rules of ours stood before, the tables that have the new ones
    already keep them: each state in between is safe, and the next attempt goes on from there.

    Raises:
        NodeagentError: of the class that the failure has; the message says what stands now.
    """
    for number, change in enumerate(changes, 1):
        try:
            change.make()
        except (NodeagentError, OSError) as error:
            kind = type(error) if isinstance(error, NodeagentError) else KernelError
            done = [change for change in changes[:number] if change.is_done]
            raise kind(f"{error}; {_outcome(done)}") from error


def _outcome(done: Sequence[TableChange]) -> str:
    """Return what has become of the tables that were replaced before the failure."""
    if not done:
        return "no table was changed"
    names = ", ".join(change.label for change in done)
    if not all(change.was_first for change in done):
        return f"changed before that, and left so: {names}; do it again to finish"
    failures = []
    for change in reversed(done):
        try:
            change.undo()
        except (NodeagentError, OSError) as error:
            failures.append(f"{change.label}: {error}")
    if failures:
        return f"what had been added to {names} could not be taken back ({'; '.join(failures)}): clear the namespace"
    return f"what had been added to {names} was taken back"
