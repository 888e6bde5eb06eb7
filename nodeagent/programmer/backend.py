"""What the programmer asks of a backend.

Every method but :meth:`Backend.encode` works on the network namespace that the calling thread
is in, and opens its sockets there anew: nothing is kept between calls, so nothing can end up
in the wrong namespace.
"""

from collections.abc import Hashable
from contextlib import AbstractContextManager
from typing import Protocol

from nodeagent.model import BackendName, KernelState, Program, Reading, RuleSet


class Backend(Protocol):
    """One way to get a rule set into the kernel."""

    name: BackendName

    def available(self) -> str | None:
        """Return None where the kernel has this backend, else the reason why not."""

    def encode(self, ruleset: RuleSet) -> Program:
        """Encode *ruleset* in a child in a scratch netns; slow, once per rule set.

        Raises:
            KernelError: the kernel refuses the rules; the message says which one and why.
        """

    def read(self, proxy_port: int | None = None) -> Reading:
        """Return what stands in this netns, without creating a table or loading a module.

        *proxy_port*: a stranger's redirect to it counts as another proxy's as well.
        """

    def mark(self) -> Hashable | None:
        """Return what tells :meth:`stands` how this netns is now; None where nothing does."""

    def stands(self, mark: Hashable) -> bool:
        """Say, for a fraction of what :meth:`read` costs, whether a reading would say what it said after *mark*.

        False as well where that cannot be told.
        """

    def write(self, program: Program, found: KernelState | None) -> None:
        """Replace whatever of ours stands by *program*, atomically per table.

        *found* is the state of the last :meth:`read`.  Strangers' rules keep their bytes,
        counters and order.  Established connections keep their path.

        Raises:
            BusyError: somebody else kept changing the same tables.
            KernelError: refused; the old rules stand, and where there were none, none do.
            RefusedError: what has to go is not ours alone; nothing was changed.
        """

    def ready_to_remove(self) -> AbstractContextManager[None]:
        """Make sure, changing nothing, that :meth:`stop` and :meth:`remove` can be done within the block.

        Others are kept out until its end, as far as they take part in that.  What remains is
        that the kernel refuses.

        Raises:
            BusyError: somebody else holds what keeps others out.
            RefusedError: what has to go is not ours alone.
        """

    def stop(self) -> None:
        """Stop redirecting new connections at once; keep tracking for the old ones."""

    def remove(self) -> None:
        """Remove all that is left of ours; resets connections that are still intercepted."""
