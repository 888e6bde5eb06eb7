"""Guarding as the seam offers it: from a pod to the host's end of its veth, and a child that attaches there.

The programmer itself never enters the host's namespace.  It finds out inside the pod where the veth ends
(:mod:`nodeagent.netns.veth`), and hands a descriptor of the host's namespace, opened before it left it, to
:mod:`nodeagent.bpf.guard`.  A child takes a few hundred milliseconds, so it works beside the programmer, for
all pods that came meanwhile at once.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from nodeagent.bpf import guard
from nodeagent.errors import KernelError, NodeagentError
from nodeagent.netns.home import Home
from nodeagent.netns.veth import FarEnd
from nodeagent.programmer.seam import Guarded, GuardState, Target

_MOST_KNOWN: Final = 4096
_PENDING: Final = Guarded(GuardState.PENDING)


class VethGuards:
    """A :class:`~nodeagent.programmer.seam.Guarding`; *program* says where the guard's program is pinned."""

    def __init__(self, home: Home, program: Callable[[], Path]) -> None:
        self._home, self._program = home, program
        self._known: dict[FarEnd, str] = {}
        """Why the guard could not be attached, by far end; empty: it is."""
        self._attaching: Future[Mapping[FarEnd, str]] | None = None

    def guard(self, targets: Sequence[Target]) -> list[Guarded]:
        """See :meth:`Guarding.guard`."""
        program = self._program()
        told = {end for end, why in self._known.items() if why}
        self._collect()
        found = [self._look(target) for target in targets]
        asked = {end for ends in found if isinstance(ends, list) for end in ends}
        for end in asked & told:  # whoever asks again wants it tried again
            del self._known[end]
        new = asked - self._known.keys()
        if new and self._attaching is None:
            thread = ThreadPoolExecutor(1, thread_name_prefix="guard")
            self._attaching = thread.submit(_attach, program, new)
            thread.shutdown(wait=False)
        return [Guarded(GuardState.UNAVAILABLE, ends) if isinstance(ends, str) else self._told(ends) for ends in found]

    def unguard(self, targets: Sequence[Target]) -> None:
        """See :meth:`Guarding.unguard`."""
        if self._attaching:
            self._attaching.exception()  # what it attaches now may have to go
            self._collect()
        found = [self._look(target) for target in targets]
        gone = {end for ends in found if isinstance(ends, list) for end in ends}
        for namespace, interfaces in _by_namespace(gone).items():
            guard.detach(_path(namespace), interfaces)
        for end in gone:
            self._known.pop(end, None)

    def _collect(self) -> None:
        if self._attaching is None or not self._attaching.done():
            return
        done, self._attaching = self._attaching, None
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()  # most have gone; attaching again changes nothing
        self._known |= done.result()

    def _look(self, target: Target) -> list[FarEnd] | str:
        try:
            return self._home.far_ends(target.netns, target.addresses)
        except (NodeagentError, OSError) as error:
            return str(error)

    def _told(self, ends: list[FarEnd]) -> Guarded:
        if not all(end in self._known for end in ends):
            return _PENDING
        why = "; ".join(self._known[end] for end in ends if self._known[end])
        return Guarded(GuardState.UNAVAILABLE, why) if why else Guarded(GuardState.ATTACHED)


def _attach(program: Path, ends: Iterable[FarEnd]) -> Mapping[FarEnd, str]:
    found: dict[FarEnd, str] = {}
    for namespace, interfaces in _by_namespace(ends).items():
        try:
            failures = guard.attach(program, _path(namespace), interfaces)
        except (KernelError, OSError) as error:
            failures = dict.fromkeys(interfaces, str(error))
        found |= {FarEnd(namespace, interface): failures.get(interface, "") for interface in interfaces}
    return found


def _by_namespace(ends: Iterable[FarEnd]) -> Mapping[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for end in ends:
        found[end.namespace].append(end.interface)
    return found


def _path(namespace: int) -> Path:
    return Path(f"/proc/{os.getpid()}/fd/{namespace}")
