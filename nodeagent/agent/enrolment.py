"""Pods in the kernel's counters: who they are, and which epoch their connections belong to.

Everything is remembered before it takes effect, so that an agent that is killed anywhere finds out
what the kernel was told last, or was about to be told.  Interception never depends on any of this:
where counting is unavailable, epochs are kept all the same, and told to the kernel later.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from nodeagent.agent.pod import Counted, Pod, Transit
from nodeagent.agent.worker import AGAIN_SECONDS, Worker
from nodeagent.errors import BusyError, KernelError, StateError
from nodeagent.model import NETNS_POD, CountedPod, Policy
from nodeagent.netns.inhabited import PodNetns
from nodeagent.programmer.seam import Observation
from nodeagent.runtime.cgroups import PodCgroup, find_containers, find_pod, name_containers, names_pod
from nodeagent.state import Store
from nodeagent.state.pods import MOST_EPOCHS

SETTLE_SECONDS: Final = 0.1
"""From a write to the epoch that it begins: by then no packet is under way that the old rules decided."""

_MOST_PAST_CONTAINERS = 64


class Enrolment:
    """Tells the kernel, by *worker*, and *store* before it; *cgroups* is where cgroup v2 is mounted, if it is."""

    def __init__(
        self, worker: Worker, store: Store, cgroups: Path | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._worker, self._store, self._clock = worker, store, clock
        self.cgroups = cgroups
        self.known = {pod: record for pod, record in store.memory.records.items() if pod not in store.memory.ended}
        """Pods as they were last, also those of a former agent."""
        self._names = {record.name for record in self.known.values()}
        self.floors: Mapping[int, int] = {}
        """Epochs that the kernel has counted in, by pod."""
        self.kept: Callable[[], str] = str
        """Where the runtime keeps namespaces by name, if that is what a pod without addresses is proven by."""
        self._in_kernel: dict[int, CountedPod] = {}
        self.problem: str | None = "not started yet"
        """Why nothing is counted; None if everything is."""

    async def learn(self) -> None:
        """Find out whom the kernel counts: those need not be told to it again.

        Raises:
            KernelError: it counts nothing.
        """
        self._in_kernel = {pod.id: pod for pod in await self._worker.ask(lambda p: p.enrolled())}

    def was_here(self, pod: Pod) -> bool:
        """Say whether *pod* was counted before, perhaps by an agent before us."""
        return bool(pod.counted.id) or pod.name in self._names

    async def enrol(self, pod: Pod, found: Observation, sidecar_names: Sequence[str]) -> None:
        """Count *pod*, before anything is written to it; tell the kernel what has changed since."""
        if not pod.counted.id or self._is_another(pod, found):
            await self._identify(pod, found)
        counted = pod.counted
        self._look_for_containers(pod, sidecar_names)
        if pod.seen:
            counted.interfaces = dict(pod.seen.interfaces)
        elif pod.wanted.policy.exclude_interfaces or not counted.interfaces:
            counted.interfaces = await self._worker.ask(lambda p: p.interfaces(pod.proven))
        await self.tell(pod)

    async def expect(self, pod: Pod) -> None:
        """Count *pod* by its cgroup, from its first packet on, while nothing else of it is known yet."""
        counted = pod.counted
        if counted.id and counted.cgroup and not counted.cgroup.path.exists():
            await self.forget(pod)
        if self.recognise(pod):
            await self.tell(pod)

    def recognise(self, pod: Pod) -> bool:
        """Find out by its cgroup which ID the kernel will know *pod* by; say whether that is news."""
        cgroup = None if pod.counted.id else self.find_cgroup(pod)
        if cgroup:
            pod.counted = Counted(cgroup=cgroup)
            self._recall_or_say(pod, cgroup.id)
        return cgroup is not None

    async def greet(self, pod: Pod, sidecar_names: Sequence[str]) -> None:
        """Tell the kernel of containers that are new in *pod*."""
        if pod.counted.id:
            self._look_for_containers(pod, sidecar_names)
            await self.tell(pod)

    def live_containers(self, pod: Pod) -> frozenset[str] | None:
        """Return the IDs of the pod's containers that run, its sandbox's among them; None if nobody can tell."""
        cgroup = self.find_cgroup(pod)
        return frozenset(find_containers(cgroup).values()) if cgroup else None

    def _is_another(self, pod: Pod, found: Observation) -> bool:
        """Say whether its cgroup has appeared since, or is a new one, or its netns is.

        A cgroup that has gone was nobody's any more: the pod ends, and is told by nothing else meanwhile.
        """
        counted = pod.counted
        if counted.cgroup is None:
            return self.find_cgroup(pod) is not None or found.cookie != counted.cookie
        try:
            return counted.cgroup.path.stat().st_ino != counted.cgroup.id
        except OSError:
            return self.find_cgroup(pod) is not None

    def find_cgroup(self, pod: Pod) -> PodCgroup | None:
        """Return the pod's cgroup v2 directory, by its configuration's hash where it is static."""
        manifest = pod.manifest
        return find_pod(self.cgroups, manifest.config_hash, manifest.uid) if self.cgroups else None

    def find_lodging(self, pod: Pod) -> PodNetns | None:
        """Return where the pod's processes live, if they have a cgroup yet."""
        cgroup, manifest = self.find_cgroup(pod), pod.manifest
        if cgroup is None:
            return None
        names = (name for name in (manifest.config_hash, manifest.uid) if names_pod(cgroup.path.name, name))
        # Whoever may make pods can make a mirror of any static pod's; an address only the kubelet gives it.
        kept = "" if manifest.pod_ips or manifest.config_hash else self.kept()
        return PodNetns(str(cgroup.path), next(names), kept, manifest.process)

    async def _identify(self, pod: Pod, found: Observation) -> None:
        """Find out by which ID the kernel knows *pod*, and what is known of it from before.

        Where it cannot be counted it is intercepted all the same, and its epochs go on.
        """
        if pod.counted.id:
            await self.forget(pod)
        before, cgroup = pod.counted, self.find_cgroup(pod)
        pod.counted = Counted(
            cookie=found.cookie, cgroup=cgroup, epoch=before.epoch, epochs=before.epochs, transit=before.transit
        )
        if cgroup is None and found.cookie is None:
            pod.counted.uncounted = "it has no cgroup v2 directory, and this kernel has no netns cookies"
            return
        self._recall_or_say(pod, cgroup.id if cgroup else NETNS_POD | (found.cookie or 0))

    def _recall_or_say(self, pod: Pod, name: int) -> None:
        try:
            self.recall(pod, name)
        except StateError as error:
            pod.counted.uncounted = str(error)

    def recall(self, pod: Pod, name: int) -> None:
        """Let *pod* have the ID *name*, the number, and the epochs that belong to it.

        Raises:
            StateError: there are too many pods.
        """
        counted, known = pod.counted, self.known.get(name)
        counted.number = self._store.number(name)
        counted.id = name
        if known and known.name == pod.name:
            counted.epochs, counted.containers = dict(known.epochs), dict(known.containers)
            counted.epoch, counted.is_recalled = max(known.epochs, default=0), True
        elif floor := self.floors.get(name):
            counted.epoch = (floor // 2 + 1) * 2  # the policies of those before are lost

    def _look_for_containers(self, pod: Pod, sidecar_names: Sequence[str]) -> None:
        counted = pod.counted
        if counted.cgroup is None:
            return
        found = name_containers(find_containers(counted.cgroup), pod.manifest.containers)
        past = {cgroup: name for cgroup, name in counted.containers.items() if cgroup not in found}
        while len(past) > _MOST_PAST_CONTAINERS:
            past.pop(next(iter(past)))
        counted.containers = {**past, **found}
        wanted = {*sidecar_names, *pod.manifest.sidecars}
        counted.sidecars = frozenset(cgroup for cgroup, name in counted.containers.items() if name in wanted)

    def is_waiting(self, pod: Pod) -> bool:
        """Say whether the kernel has yet to be told of *pod*, although it counts."""
        return pod.counted.told is None and self.problem is None and (bool(pod.counted.id) or self._has_name(pod))

    def _has_name(self, pod: Pod) -> bool:
        """Say whether there is something to know *pod* by, so that a number is all that it lacks."""
        return bool(pod.counted.uncounted) and (pod.counted.cgroup or pod.counted.cookie) is not None

    async def tell(self, pod: Pod) -> None:
        """Tell the kernel who *pod* is, if that is new to it."""
        counted = pod.counted
        self._save(pod)
        if not counted.id or self.problem:
            return
        told = _described(pod)
        if told in (counted.told, self._in_kernel.pop(told.id, None)):
            counted.told = told
            return
        if counted.told and replace(counted.told, epoch=told.epoch) == told:
            with suppress(KernelError):  # somebody removed it: it is enrolled again
                await self._worker.ask(lambda p: p.set_epoch(told.id, told.epoch))
                counted.told = told
                return
        counted.told = None
        if await self._try(lambda: self._worker.ask(lambda p: p.enrol(told))):
            counted.told = told

    def _save(self, pod: Pod) -> None:
        """Remember what the ledger and the next agent need; where that fails, it is told elsewhere."""
        record = pod.record()
        if record.id and self.known.get(record.id) != record:
            self.known[record.id] = record
            with suppress(StateError):
                self._store.save([record])

    # -- epochs ---------------------------------------------------------------------------------

    async def begin(self, pod: Pod, policy: Policy) -> None:
        """Enter the odd epoch before a write that brings *policy*."""
        following = self._plan(pod, policy)
        await self._enter(pod, following - 1)

    def announce(self, pod: Pod, policy: Policy) -> CountedPod | None:
        """Enter that epoch as far as we ourselves are concerned; return what the kernel is to be told, if it counts."""
        pod.counted.epoch = self._plan(pod, policy) - 1
        self._save(pod)
        return None if self.problem or not pod.counted.id else _described(pod)

    def _plan(self, pod: Pod, policy: Policy) -> int:
        """Note the policy of the next even epoch, and return that."""
        counted = pod.counted
        following = counted.following
        counted.epochs[following] = policy
        while len(counted.epochs) > MOST_EPOCHS:
            counted.epochs.pop(sorted(counted.epochs)[1])
        return following

    def written(self, pod: Pod) -> None:
        """Take note of the write: the next even epoch begins once it is certain to hold for every packet."""
        pod.counted.is_recalled = False
        pod.counted.transit = Transit(self._clock() + SETTLE_SECONDS, pod.counted.following)

    async def failed(self, pod: Pod) -> None:
        """Go on with the policy that was in force before; before the first rules, stay where we are."""
        counted = pod.counted
        before = counted.epochs.get(counted.following - 2)
        if before is not None:
            counted.epochs[counted.following] = before
            await self._enter(pod, counted.epoch)
            self.written(pod)

    async def settle(self, pod: Pod) -> None:
        """Begin the even epoch that is due."""
        transit = pod.counted.transit
        if transit:
            pod.counted.transit = None
            await self._enter(pod, transit.epoch)

    async def _enter(self, pod: Pod, epoch: int) -> None:
        pod.counted.epoch = epoch
        await self.tell(pod)

    async def forget(self, pod: Pod) -> None:
        """Count *pod* no longer; its record goes with the next observation, its number when no slot has it."""
        while not await self.forget_soon(pod):  # noqa: ASYNC110  # the kernel tells of no end
            await asyncio.sleep(AGAIN_SECONDS)

    async def forget_soon(self, pod: Pod) -> bool:
        """Forget *pod* as :meth:`forget` does, without waiting; say whether it is done, else ask again in a moment."""
        counted = pod.counted
        if counted.id and not self.problem:  # also what another programmer told it
            try:
                await self._worker.ask(lambda p: p.forget(counted.id))
            except BusyError:
                return False
            except KernelError as error:
                self._give_up(error)
        self._in_kernel.pop(counted.id, None)
        self.known.pop(counted.id, None)
        pod.counted = Counted()
        return True

    async def _try(self, call: Callable[[], Awaitable[None]]) -> bool:
        try:
            await call()
        except BusyError as error:  # slots of the pod that had the number before: they are being released
            structlog.get_logger().info("not counted yet", error=str(error))
            return False
        except KernelError as error:
            self._give_up(error)
            return False
        return True

    def _give_up(self, error: KernelError) -> None:
        self.problem = str(error)
        structlog.get_logger().error("counting is unavailable", error=str(error))


def _described(pod: Pod) -> CountedPod:
    """Return what the kernel has to know of *pod*."""
    counted, policy = pod.counted, pod.wanted.policy
    return CountedPod(
        id=counted.id,
        number=counted.number,
        epoch=counted.epoch,
        proxy_port=policy.proxy_port,
        dns_port=policy.dns_port,
        uids=tuple(sorted(policy.proxy_uids)),
        gids=tuple(sorted(policy.proxy_gids)),
        sidecars=counted.sidecars,
    )
