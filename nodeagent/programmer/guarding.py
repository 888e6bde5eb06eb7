"""Guarding as the seam offers it: from a pod to the host's end of its veth, and a child that attaches there.

The programmer itself never enters the host's namespace.  It opens a socket inside the pod; a thread asks that where
the veth ends (:mod:`nodeagent.netns.veth`), and hands a descriptor of the host's namespace, opened before it left it,
to :mod:`nodeagent.bpf.guard`.  Both may take a few hundred milliseconds, so nobody waits for them, and all pods that
came meanwhile are served at once.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from nodeagent import netlink
from nodeagent.bpf import guard
from nodeagent.errors import KernelError, NodeagentError
from nodeagent.netns.home import Home
from nodeagent.netns.veth import FarEnd
from nodeagent.programmer.seam import Guarded, GuardState, Target

_PENDING: Final = Guarded(GuardState.PENDING)


class VethGuards:
    """A :class:`~nodeagent.programmer.seam.Guarding`; *program* says where the guard's program is pinned.

    What became of a guard is told once: who asks again has it attached again, which changes nothing where it is.
    """

    def __init__(self, home: Home, program: Callable[[], Path]) -> None:
        self._home, self._program = home, program
        self._told: dict[Target, Guarded] = {}
        self._attaching: Future[dict[Target, Guarded]] | None = None

    def guard(self, targets: Sequence[Target]) -> list[Guarded]:
        """See :meth:`Guarding.guard`."""
        program = self._program()
        self._collect()
        is_free = self._attaching is None
        links: dict[Target, netlink.Link] = {}
        found = [self._take(target, links, is_free=is_free) for target in targets]
        if links:
            thread = ThreadPoolExecutor(1, thread_name_prefix="guard")
            self._attaching = thread.submit(self._attach, program, links)
            thread.shutdown(wait=False)
        return found

    def unguard(self, targets: Sequence[Target]) -> None:
        """See :meth:`Guarding.unguard`."""
        if self._attaching:
            self._attaching.exception()  # what it attaches now may have to go
            self._collect()
        gone: set[FarEnd] = set()
        for target in targets:
            self._told.pop(target, None)
            with suppress(NodeagentError, OSError), self._home.link(target.netns, target.addresses) as link:
                gone.update(self._home.far_ends(link))
        for namespace, interfaces in _by_namespace(gone).items():
            guard.detach(_path(namespace), interfaces)

    def _take(self, target: Target, links: dict[Target, netlink.Link], *, is_free: bool) -> Guarded:
        """Return what has become of a target; add a socket of its to *links*, if it is anybody's turn."""
        if target in self._told:
            return self._told.pop(target)
        if is_free and target not in links:
            try:
                links[target] = self._home.link(target.netns, target.addresses)
            except (NodeagentError, OSError) as error:
                return Guarded(GuardState.UNAVAILABLE, str(error))
        return _PENDING

    def _collect(self) -> None:
        if self._attaching is None or not self._attaching.done():
            return
        done, self._attaching = self._attaching, None
        self._told = done.result()  # what nobody has asked for since was asked for by nobody who is still there

    # -- in the thread --------------------------------------------------------------------------

    def _attach(self, program: Path, links: Mapping[Target, netlink.Link]) -> dict[Target, Guarded]:
        ends: dict[Target, list[FarEnd]] = {}
        told: dict[Target, Guarded] = {}
        for target, link in links.items():
            try:
                with link:
                    ends[target] = self._home.far_ends(link)
            except (NodeagentError, OSError) as error:
                told[target] = Guarded(GuardState.UNAVAILABLE, str(error))
        failures = _attach_all(program, {end for found in ends.values() for end in found})
        for target, found in ends.items():
            why = "; ".join(failures[end] for end in found if end in failures)
            told[target] = Guarded(GuardState.UNAVAILABLE, why) if why else Guarded(GuardState.ATTACHED)
        return told


def _attach_all(program: Path, ends: Iterable[FarEnd]) -> Mapping[FarEnd, str]:
    """Attach to all of *ends*; return why some could not be had."""
    found: dict[FarEnd, str] = {}
    for namespace, interfaces in _by_namespace(ends).items():
        try:
            failures = guard.attach(program, _path(namespace), interfaces)
        except (KernelError, OSError) as error:
            failures = dict.fromkeys(interfaces, str(error))
        found |= {FarEnd(namespace, interface): why for interface, why in failures.items()}
    return found


def _by_namespace(ends: Iterable[FarEnd]) -> Mapping[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for end in ends:
        found[end.namespace].append(end.interface)
    return found


def _path(namespace: int) -> Path:
    return Path(f"/proc/{os.getpid()}/fd/{namespace}")
