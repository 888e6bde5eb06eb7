"""Count what pods send, in the kernel: who is a pod, and what becomes of its slots.

Only the privileged programmer has one of these; who merely reads gets the descriptor of the slot
array (:mod:`nodeagent.bpf.slots`).  Everything is pinned: it goes on counting when this process ends.

Promises: whatever is asked may be asked again, and a process that is killed in the middle has lost or
doubled nothing.  Refuses to guess: what the kernel does not give is a KernelError that says why.
"""

import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from socket import htons, ntohs
from typing import Final, Self, TypeAlias

from nodeagent.bpf import layout, loader, maps, syscalls
from nodeagent.bpf.compiler import compile_programs
from nodeagent.bpf.generations import Folder, question
from nodeagent.bpf.layout import Answer, MapNumber, OwnerKind, Tally
from nodeagent.bpf.loader import Loaded, Settings
from nodeagent.bpf.slots import SlotReader, encode_key
from nodeagent.errors import BusyError, KernelError
from nodeagent.model.flow import CountedPod, FlowClass, FlowKey, FlowKind, SlotState

__all__ = ["Counting", "Health", "Settings", "SlotId", "detach"]

_ID: Final = struct.Struct("=Q")
_POD: Final = struct.Struct("=IIIHH")
_OWNER: Final = struct.Struct("=QII")
_CONFIG: Final = struct.Struct(f"=II{layout.LEVELS}I")
_FIRST: Final = bytes(4)
_NOWHERE: Final = IPv4Address(0)

SlotId: TypeAlias = tuple[int, int]
"""A slot's position and generation."""


@dataclass(frozen=True)
class Health:
    """How counting is doing.  ``refused``: hooks that this kernel did not take, and why."""

    entries: int
    capacity: int
    lost_updates: int
    """Packets that were not added to a slot of their own: they are in their pod's overflow, or ``lost``."""
    lost: int
    """Packets that are in no slot at all."""
    unseen_packets: int
    """Packets that left a pod with no socket behind them, as the wire guard saw."""
    attached: tuple[str, ...]
    refused: dict[str, str]


class Counting:
    """The kernel's side of the ledger."""

    def __init__(self, settings: Settings, loaded: Loaded) -> None:
        self._settings, self._loaded = settings, loaded

    @classmethod
    def load(cls, settings: Settings = Settings(), pods: Iterable[CountedPod] = ()) -> Self:  # noqa: B008  # frozen
        """Compile, load and attach this version's programs, in the place of those that may be there.

        Pods that were counted go on being counted.  Where a version before this one described pods
        differently they cannot be taken over: *pods* are enrolled before a program sees a packet.

        Raises:
            KernelError: why nothing can be counted here.
            BusyError: another process loads at this moment.
        """
        code = compile_programs(settings.sources, settings.cache)

        def prepare(loaded: Loaded) -> None:
            counting = cls(settings, loaded)
            counting._set_levels(settings.levels)
            counting._reserve_again()
            for pod in pods:
                counting.enrol(pod)

        return cls(settings, loader.load(settings, code, prepare))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all descriptors; counting goes on."""
        self._loaded.close()

    @property
    def slots_fd(self) -> int:
        """The slot array's descriptor, to read from and to give away; it is closed with this object."""
        return self._loaded.maps[MapNumber.SLOTS]

    @property
    def guard(self) -> Path:
        """Where the wire guard's program is pinned, for :func:`nodeagent.bpf.guard.attach`.

        Attach it again after each load: the one that is attached counts in the maps that it was loaded on.
        """
        return Folder(self._settings.bpffs).guard

    # -- pods -----------------------------------------------------------------------------------

    def enrol(self, pod: CountedPod) -> None:
        """Count *pod* from now on, or with these facts from now on.

        Raises:
            BusyError: slots of its number are another pod's still, or its own from before it was forgotten.
            KernelError: there are too many pods.
        """
        self._replace_owners(pod)
        self._replace_sidecars(pod)
        self._reserve(pod.id, pod.number)
        ports = htons(pod.proxy_port), htons(pod.dns_port)
        self._update(MapNumber.PODS, _ID.pack(pod.id), _POD.pack(pod.number, pod.epoch, pod.tproxy_mark, *ports))
        self._look_again()

    def enrolled(self) -> dict[int, CountedPod]:
        """Return the pods that are counted, by their IDs, also those that a process before this one enrolled."""
        owners: dict[tuple[int, int], list[int]] = defaultdict(list)
        for key, _ in self._entries(MapNumber.OWNERS):
            pod, number, kind = _OWNER.unpack(key)
            owners[pod, kind].append(number)
        sidecars: dict[bytes, list[int]] = defaultdict(list)
        for key, value in self._entries(MapNumber.SIDECARS):
            sidecars[value] += _ID.unpack(key)
        found = {}
        for key, value in self._entries(MapNumber.PODS):
            (pod,), (number, epoch, mark, proxy_port, dns_port) = _ID.unpack(key), _POD.unpack(value)
            found[pod] = CountedPod(
                id=pod,
                number=number,
                epoch=epoch,
                proxy_port=ntohs(proxy_port),
                dns_port=ntohs(dns_port),
                uids=tuple(sorted(owners[pod, OwnerKind.UID])),
                gids=tuple(sorted(owners[pod, OwnerKind.GID])),
                sidecars=frozenset(sidecars[key]),
                tproxy_mark=mark,
            )
        return found

    def set_epoch(self, pod_id: int, epoch: int) -> None:
        """Let connections that begin from now on belong to *epoch*.

        Raises:
            KernelError: the pod is not enrolled.
        """
        key = _ID.pack(pod_id)
        value = syscalls.lookup(self._loaded.maps[MapNumber.PODS], key, _POD.size)
        if value is None:
            raise KernelError(f"pod {pod_id} is not counted: enrol it first")
        number, _, *rest = _POD.unpack(value)
        self._update(MapNumber.PODS, key, _POD.pack(number, epoch, *rest))

    def forget(self, pod_id: int) -> None:
        """Stop counting a pod, and evict its slots: they can be read until they are released."""
        self.dismiss(pod_id)
        syscalls.synchronize()
        self.evict_all_of(pod_id)

    def dismiss(self, pod_id: int) -> None:
        """Stop counting a pod: once a grace period has passed, nobody takes a slot for it any more."""
        syscalls.delete(self._loaded.maps[MapNumber.PODS], _ID.pack(pod_id))
        self._look_again()
        for key in self._owners_of(pod_id):
            syscalls.delete(self._loaded.maps[MapNumber.OWNERS], key)
        for key in self._sidecars_of(pod_id):
            syscalls.delete(self._loaded.maps[MapNumber.SIDECARS], key)

    def evict_all_of(self, pod_id: int) -> None:
        """Evict the slots of a pod that was dismissed a grace period ago."""
        with SlotReader(self.slots_fd) as reader:
            slots = [s for s in reader.read() if s.key.pod == pod_id and s.state is SlotState.LIVE]
        self.evict_soon([(slot.position, slot.generation) for slot in slots])

    # -- slots ----------------------------------------------------------------------------------

    def evict(self, slots: Iterable[SlotId]) -> None:
        """Let nobody add to *slots*; flows that go on take new ones.  What they hold stays readable.

        When this returns the last packet that was under way has been counted, also in those that were evicted before.
        """
        self.evict_soon(slots)
        syscalls.synchronize()

    def evict_soon(self, slots: Iterable[SlotId]) -> None:
        """Evict *slots*: once a grace period has passed, the last packet that was under way has been counted."""
        for position, generation in slots:
            self._ask("evict", position, generation)

    def release(self, slots: Sequence[tuple[int, int, FlowKey | None]]) -> list[SlotId]:
        """Add what evicted *slots* hold to the slot of the key beside them, or drop it, and free them.

        It waits until the last packet that was under way when they were evicted has been counted.
        Returns those that remain as they were, because there is no slot to add them to.
        """
        syscalls.synchronize()
        return self.release_evicted(slots)

    def release_evicted(self, slots: Sequence[tuple[int, int, FlowKey | None]]) -> list[SlotId]:
        """Release slots that were evicted a grace period ago."""
        return [
            (position, generation)
            for position, generation, target in slots
            if self._ask("release", position, generation, target) is Answer.NO_ROOM
        ]

    def pin_again(self) -> bool:
        """Pin again what somebody has unpinned, or what was below another mount; say whether anything was.

        Counting goes on meanwhile, but would end with this process.

        Raises:
            KernelError: why that cannot be done now.
        """
        if loader.is_pinned(self._settings, self._loaded):
            return False
        code = compile_programs(self._settings.sources, self._settings.cache)
        loader.pin_again(self._settings, code, self._loaded)
        return True

    def health(self) -> Health:
        """Return how counting is doing."""
        number = {tally: self._tally(tally) for tally in Tally}
        lost = number[Tally.NO_STATE] + number[Tally.LOST] + number[Tally.UNREADABLE]
        return Health(
            entries=number[Tally.ENTRIES] - number[Tally.RETURNED],
            capacity=layout.SLOTS - layout.RESERVED,
            lost_updates=number[Tally.OVERFLOW] + number[Tally.BUSY] + lost,
            lost=lost,
            unseen_packets=number[Tally.UNSEEN],
            attached=Folder(self._settings.bpffs).attached(),
            refused=dict(self._loaded.refused),
        )

    def detach(self) -> None:
        """Stop counting: remove every link, map and program of ours."""
        self.close()
        detach(self._settings.bpffs)

    # -- inside ---------------------------------------------------------------------------------

    def _update(self, number: MapNumber, key: bytes, value: bytes) -> None:
        try:
            syscalls.update(self._loaded.maps[number], key, value)
        except OSError as error:
            entries = maps.SPECS[number].entries
            raise KernelError(f"the map of {number.name.lower()} ({entries} entries): {error.strerror}") from None

    def _set_levels(self, levels: tuple[int, ...]) -> None:
        if len(levels) > layout.LEVELS:
            raise ValueError(f"at most {layout.LEVELS} levels, not {levels}")
        roster = self._roster()
        wanted = (roster + 1, 0, *levels, *(0,) * (layout.LEVELS - len(levels)))
        self._update(MapNumber.CONFIG, _FIRST, _CONFIG.pack(*wanted))

    def _look_again(self) -> None:
        """Let every socket look up again whose it is."""
        config = list(self._config())
        config[0] = config[0] % 0xFFFFFFFF + 1
        self._update(MapNumber.CONFIG, _FIRST, _CONFIG.pack(*config))

    def _config(self) -> tuple[int, ...]:
        value = syscalls.lookup(self._loaded.maps[MapNumber.CONFIG], _FIRST, _CONFIG.size)
        return _CONFIG.unpack(value or bytes(_CONFIG.size))

    def _roster(self) -> int:
        return self._config()[0]

    def _owners_of(self, pod_id: int) -> list[bytes]:
        pod = _ID.pack(pod_id)
        return [key for key, _ in self._entries(MapNumber.OWNERS) if key.startswith(pod)]

    def _sidecars_of(self, pod_id: int) -> list[bytes]:
        pod = _ID.pack(pod_id)
        return [key for key, value in self._entries(MapNumber.SIDECARS) if value == pod]

    def _entries(self, number: MapNumber) -> list[tuple[bytes, bytes]]:
        spec = maps.SPECS[number]
        return syscalls.entries_of(self._loaded.maps[number], spec.key, spec.value)

    def _replace_owners(self, pod: CountedPod) -> None:
        wanted = {_OWNER.pack(pod.id, uid, OwnerKind.UID) for uid in pod.uids}
        wanted |= {_OWNER.pack(pod.id, gid, OwnerKind.GID) for gid in pod.gids}
        for key in set(self._owners_of(pod.id)) - wanted:
            syscalls.delete(self._loaded.maps[MapNumber.OWNERS], key)
        for key in wanted:
            self._update(MapNumber.OWNERS, key, b"\1")

    def _replace_sidecars(self, pod: CountedPod) -> None:
        wanted = {_ID.pack(container) for container in pod.sidecars}
        for key in set(self._sidecars_of(pod.id)) - wanted:
            syscalls.delete(self._loaded.maps[MapNumber.SIDECARS], key)
        for key in wanted:
            self._update(MapNumber.SIDECARS, key, _ID.pack(pod.id))

    def _reserve(self, pod_id: int, number: int) -> None:
        if not 1 <= number < layout.PODS:
            raise ValueError(f"a pod's number is 1 to {layout.PODS - 1}, not {number}")
        for flow_class in FlowClass:
            key = FlowKey(pod_id, 0, _NOWHERE, 0, 0, 0, 0, flow_class, kind=FlowKind.OVERFLOW)
            if self._ask("reserve", number * layout.CLASSES + flow_class, 0, key) is Answer.TAKEN:
                raise BusyError(f"number {number} is another pod's: release its slots first")

    def _reserve_again(self) -> None:
        """Set up the reserved slots of pods that came from a generation of maps before this one."""
        for pod in self.enrolled().values():
            self._reserve(pod.id, pod.number)

    def _ask(self, program: str, position: int, generation: int, key: FlowKey | None = None) -> Answer:
        asked = question(position, generation, encode_key(key) if key else b"")
        answer = Answer(syscalls.test_run(self._loaded.upkeep[program], asked))
        if answer is Answer.NOT_UNDERSTOOD:
            raise ValueError(f"there is no slot {position} to {program}")
        return answer

    def _tally(self, tally: Tally) -> int:
        value = syscalls.lookup(self._loaded.maps[MapNumber.TALLIES], struct.pack("=I", tally), _ID.size)
        return int(_ID.unpack(value or bytes(_ID.size))[0])


def detach(bpffs: Path = Settings.bpffs) -> None:
    """Remove every link, map and program that counting pinned below *bpffs*."""
    Folder(bpffs).remove()
