"""Counting as the seam offers it: :class:`nodeagent.bpf.counting.Counting`, loaded when it is first asked for."""

import os
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from nodeagent.bpf import counting as bpf
from nodeagent.bpf import lpm
from nodeagent.bpf.compiler import compile_programs
from nodeagent.bpf.loader import Settings, probe_cgroup
from nodeagent.bpf.programs import GUARD
from nodeagent.errors import BusyError, KernelError
from nodeagent.model import CountedPod
from nodeagent.programmer.grace import Grace
from nodeagent.programmer.seam import CountingHealth, CountingSettings, Freed, SlotRef

_LEVELS: Final = (2, 3, 4)
"""Where pods' cgroups lie, below the one that holds them all: kubepods/pod, kubepods/burstable/pod, kubelet/…"""
_AT_ONCE_SECONDS: Final = 0.05


class KernelCounting:
    """A :class:`~nodeagent.programmer.seam.Counting` on this kernel."""

    def __init__(self) -> None:
        self._counting: bpf.Counting | None = None
        self._compiling: Future[Mapping[str, bytes]] | None = None
        self._grace = Grace()

    def start_counting(self, settings: CountingSettings) -> None:
        """See :meth:`Counting.start_counting`."""
        if self._counting:
            return
        if not settings.cgroup:
            raise KernelError(
                "no cgroup v2 hierarchy is mounted, and without one nothing can be counted: mount cgroup2"
            )
        probe_cgroup(Settings(cgroup=Path(settings.cgroup)))
        cgroup, cache = Path(settings.cgroup), _own_folder(Path(settings.cache))
        if cache:
            self._compile(cache)
        levels = tuple(_depth(cgroup) + level for level in _LEVELS)
        self._counting = bpf.Counting.load(Settings(Path(settings.bpffs), cgroup, levels, cache))

    def _compile(self, cache: Path) -> None:
        """Have the programs compiled into *cache*, without keeping anybody waiting who wants a pod programmed.

        Raises:
            BusyError: it takes a while.
        """
        if self._compiling is None:
            thread = ThreadPoolExecutor(1)
            self._compiling = thread.submit(compile_programs, cache=cache)
            thread.shutdown(wait=False)
        try:
            self._compiling.result(_AT_ONCE_SECONDS)
        except TimeoutError:
            raise BusyError("the counting programs are being compiled: ask again in a moment") from None
        except KernelError:
            self._compiling = None
            raise

    @property
    def guard(self) -> Path:
        """Where the wire guard's program is pinned.

        Raises:
            KernelError: nowhere, and why.
        """
        refused = self._loaded.health().refused.get(GUARD)
        if refused:
            raise KernelError(refused)
        return self._loaded.guard

    def enrol(self, pod: CountedPod) -> None:
        """See :meth:`Counting.enrol`."""
        self._grace.drop(("forget", pod.id))  # whoever wanted that has not come back
        self._loaded.enrol(pod)

    def enrolled(self) -> list[CountedPod]:
        """See :meth:`Counting.enrolled`."""
        return list(self._loaded.enrolled().values())

    def set_epoch(self, pod: int, epoch: int) -> None:
        """See :meth:`Counting.set_epoch`."""
        self._loaded.set_epoch(pod, epoch)

    def forget(self, pod: int) -> None:
        """See :meth:`Counting.forget`."""
        name, loaded = ("forget", pod), self._loaded
        if not self._grace.is_known(name):
            loaded.dismiss(pod)
            self._grace.begin(name)
        self._grace.end(name)
        loaded.evict_all_of(pod)

    def evict(self, slots: Sequence[SlotRef]) -> None:
        """See :meth:`Counting.evict`."""
        name, loaded = ("evict", tuple(slots)), self._loaded
        if not self._grace.is_known(name):
            loaded.evict_soon(slots)
            self._grace.begin(name)
        self._grace.end(name)

    def release(self, slots: Sequence[Freed]) -> None:
        """See :meth:`Counting.release`."""
        name, loaded = ("release", tuple(slots)), self._loaded
        if not self._grace.is_known(name):
            self._grace.begin(name)
        self._grace.end(name)
        loaded.release_evicted([(slot.position, slot.generation, slot.into) for slot in slots])

    def slots(self) -> int:
        """See :meth:`Counting.slots`."""
        return os.dup(self._loaded.slots_fd)

    def counting_health(self) -> CountingHealth:
        """See :meth:`Counting.counting_health`."""
        unpinned = self._pin_again()
        found = self._loaded.health()
        return CountingHealth(
            found.entries,
            found.capacity,
            found.lost_updates,
            found.unseen_packets,
            found.attached,
            found.refused,
            unpinned,
        )

    def _pin_again(self) -> str:
        try:
            if self._loaded.pin_again():
                structlog.get_logger().warning("what counts was unpinned by somebody: it is pinned again")
        except KernelError as error:
            return str(error)
        return ""

    def stop_counting(self, bpffs: str) -> None:
        """See :meth:`Counting.stop_counting`."""
        if self._counting:
            self._counting.close()
        self._counting = None
        bpf.detach(Path(bpffs))
        lpm.unpin_all(Path(bpffs))
        with suppress(OSError):  # never there, or not only ours
            (Path(bpffs) / "nodeagent").rmdir()

    @property
    def _loaded(self) -> bpf.Counting:
        if self._counting is None:
            raise KernelError("nothing is counted: start counting first")
        return self._counting


def _own_folder(folder: Path) -> Path | None:
    """Return *folder*, made if it is not there; None if it cannot be.  What is in it will be loaded into the kernel.

    Raises:
        KernelError: others may write there.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KernelError(f"{folder}: others may write there, and programs are loaded from it: give it to us alone")
    return folder


def _depth(cgroup: Path) -> int:
    """Return how far *cgroup* lies below the root of its hierarchy."""
    depth, device = 0, cgroup.stat().st_dev
    while cgroup.parent != cgroup and cgroup.parent.stat().st_dev == device:
        depth, cgroup = depth + 1, cgroup.parent
    return depth
