"""The agent: everything that runs, in one place.

| task | wakes up for | does |
|---|---|---|
| ``attendance.run`` | a programmer that was started | counting, events of nft, and all pods anew |
| ``manifests.run`` | the directory; every half second while a file is being written | a new snapshot |
| ``cluster.run`` | the API server's watch | a new snapshot, and Events |
| ``sandboxes.run`` | the container runtime's calls | a new snapshot; the pod's step before all others, and an answer |
| ``_configuration`` | its file | reload, or keep the last good one |
| ``_reconcile`` | the queue | one step of one pod |
| ``_sweep`` | the clock | look for drift everywhere |
| ``_count`` | the clock | slots into the ledger, and back to the kernel |
| ``_guard`` | the clock | a guard for wires that have none |
| ``_containers`` | cgroups that come and go | look at their pods |

A task that fails for a reason that nobody foresaw ends the agent: whoever started it starts it
again, and all that matters is in the kernel and in the state.
"""

import asyncio
import itertools
import socket
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from nodeagent.agent.arrivals import PERIOD, Arrivals
from nodeagent.agent.attendance import Attendance, Parts
from nodeagent.agent.census import Census, SlotSource
from nodeagent.agent.cluster import Cluster, ClusterOptions
from nodeagent.agent.containers import Containers
from nodeagent.agent.drift import Drift
from nodeagent.agent.enrolment import Enrolment
from nodeagent.agent.facts import Facts
from nodeagent.agent.guards import Guards
from nodeagent.agent.manifests import Manifests
from nodeagent.agent.pod import Pod, Source, Stage
from nodeagent.agent.policies import Policies
from nodeagent.agent.queue import Queue, backoff
from nodeagent.agent.reconcile import Reconciler
from nodeagent.agent.roster import Roster
from nodeagent.agent.sandboxes import Ears, Place, Sandboxes
from nodeagent.agent.waiting import readable
from nodeagent.agent.worker import Privileged, Worker
from nodeagent.errors import (
    BusyError,
    InputError,
    KernelError,
    NodeagentError,
    RefusedError,
    StateError,
    UnreachableError,
)
from nodeagent.files.configuration import ConfigurationFile
from nodeagent.model import PodKey, Snapshot
from nodeagent.nri import AbsentError
from nodeagent.policy import Configuration
from nodeagent.programmer.seam import CountingSettings
from nodeagent.runtime.cgroups import pod_places
from nodeagent.state import Store

BY_PROGRAMMER: Final = "programmer"
"""Not a path: the programmer has the container runtime's socket, and lets us hear it."""

_UNFINISHED_SECONDS = 0.5
_PAUSE_SECONDS = 0.02
_CONTAINERS_SECONDS = 0.5
_STEPS_AT_ONCE = 32
_NOTICED = 1.0
"""Seconds until another period of sweeps takes effect."""
_SWEEPS_A_MEASUREMENT = 6
_MOST_TRIES = 3


@dataclass(frozen=True, slots=True)
class Options:
    """Where everything is, one source of pods at least; ``cgroups`` None means a node without cgroup v2.

    ``state_problem`` is why nothing is kept; ``nri`` is the container runtime's socket,
    or :data:`BY_PROGRAMMER`, ``netns_dir`` where it keeps network namespaces.
    """

    pods_dir: str | None
    config: str | None
    cgroups: Path | None
    counting: CountingSettings
    open_slots: Callable[[int], SlotSource]
    state_problem: str | None = None
    cluster: ClusterOptions | None = None
    nri: str | None = None
    netns_dir: str = ""


class Agent:
    """Runs until it is cancelled; *start* starts a programmer."""

    def __init__(
        self,
        options: Options,
        configuration: Configuration,
        start: Callable[[], Privileged],
        store: Store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options, self._clock = options, clock
        self._listeners = configuration.settings.http
        self.facts = Facts()
        self.queue = Queue[PodKey](clock)
        self.roster = Roster(Policies(configuration), self.queue, self.facts, clock)
        self.worker = Worker(start)
        self.enrolment = Enrolment(self.worker, store, options.cgroups, clock)
        self.census = Census(self.worker, self.enrolment, self.roster, store, options.open_slots)
        self.drift = Drift(self.worker, self.roster, self.queue, self.facts)
        self.guards = Guards(self.worker, self.enrolment, self.roster)
        parts = Parts(self.worker, self.enrolment, self.census, self.drift, self.roster, self.queue, self.facts)
        self.attendance = Attendance(parts, options.counting, clock)
        self._reconciler = Reconciler(self.worker, self.enrolment, self.facts, self.roster, clock)
        self.enrolment.kept = lambda: "" if self.hears_runtime else options.netns_dir
        self.store = store
        self.configuration_problem: str | None = None
        self._stepped: dict[PodKey, list[asyncio.Future[None]]] = {}
        self._unheard = set(self._sources(configuration))
        self.roster.remembered = {record.name: record.policy for record in self.enrolment.known.values()}

    async def run(self) -> None:
        """Run until cancelled; rules and counting stay as they are.

        Raises:
            KernelError: the programmer cannot be started at all.
        """
        try:
            with suppress(UnreachableError):  # then it is attended to, until there is one
                await self.worker.start()
            async with asyncio.TaskGroup() as tasks:
                for task in self._tasks:
                    tasks.create_task(task())
                if self.manifests:
                    tasks.create_task(self.manifests.run())
                if self.cluster:
                    tasks.create_task(self.cluster.run(at_once=bool(self.enrolment.known)))
                if self.sandboxes:
                    tasks.create_task(self._sandboxes(self.sandboxes))
                if self.options.config:
                    tasks.create_task(self._configuration(self.options.config))
        finally:
            self.drift.close()
            self.census.close()
            await self.worker.close()

    def _sources(self, configuration: Configuration) -> Iterator[Source]:
        """Make the sources that the options name; yield which they are."""
        self.manifests: Manifests | None = None
        self.cluster: Cluster | None = None
        if self.options.pods_dir:
            tell = partial(self._hear, Source.DIRECTORY)
            self.manifests = Manifests(self.options.pods_dir, tell, lambda: self._period, self._clock)
            yield Source.DIRECTORY
        if self.options.cluster:
            tell = partial(self._hear, Source.CLUSTER)
            self.cluster = Cluster(self.options.cluster, configuration, tell, self._clock)
            self.roster.judged = self.cluster.judge
            self.census.services = self.cluster.services
            yield Source.CLUSTER
        self.sandboxes: Sandboxes | None = None
        if self.options.nri:
            tell, nothing = partial(self._hear, Source.RUNTIME), partial(self._heard, Source.RUNTIME)
            ears = Ears(tell, nothing, self._attend, self._serve)
            self.sandboxes = Sandboxes(self._place(self.options.nri), ears, self.roster, self.enrolment, self.facts)
            yield Source.RUNTIME

    def _place(self, nri: str) -> Place:
        return Place("the programmer's socket of the runtime", self._dial) if nri == BY_PROGRAMMER else Place(nri)

    async def _dial(self, _name: str) -> socket.socket:
        """Return a connection to the runtime that the programmer has made.

        Raises:
            NodeagentError: it has not.
        """
        try:
            descriptor = await self.worker.ask(lambda programmer: programmer.runtime())
        except BusyError as error:
            raise AbsentError(str(error)) from None
        return socket.socket(fileno=descriptor)

    @property
    def watch_age(self) -> float | None:
        """Seconds since pods were last heard of; None where nobody needs to say anything while nothing happens."""
        return max((source.age for source in (self.manifests, self.cluster) if source), default=None)

    @property
    def state_problem(self) -> str | None:
        """Why a restart would not go on where we are; None if it would."""
        return self.options.state_problem or self.store.problem

    @property
    def _tasks(self) -> tuple[Callable[[], Coroutine[None, None, None]], ...]:
        return (
            self.attendance.run,
            self._reconcile,
            self._sweep,
            self._count,
            self._guard,
            self._containers,
        )

    # -- what should be -------------------------------------------------------------------------

    def _hear(self, source: Source, snapshot: Snapshot) -> None:
        is_first = source in self._unheard and self.store.began is not None
        self.roster.update(source, snapshot, were_there=is_first)
        self._heard(source)

    def _heard(self, source: Source) -> None:
        """Take note that *source* has said what there is, or has nothing to say."""
        if source in self._unheard:
            self._unheard.discard(source)
            if not self._unheard:
                self._recall()

    def _recall(self) -> None:
        """Let those pods of the agent before retire that no source names; only after every source's first word."""
        for pod, record in self.roster.recall(list(self.enrolment.known.values())):
            with suppress(StateError):
                self.enrolment.recall(pod, record.id)

    async def _configuration(self, path: str) -> None:
        file = ConfigurationFile(path, self._clock)
        file.changed()
        try:
            while True:
                await readable(file.fileno(), _UNFINISHED_SECONDS if file.is_unfinished else self._period)
                await asyncio.sleep(_PAUSE_SECONDS)
                if file.changed():
                    self._reload(file)
        finally:
            file.close()

    def _reload(self, file: ConfigurationFile) -> None:
        try:
            configuration = file.read()
        except InputError as error:
            self.facts.config_reloads["rejected"] += 1
            self.configuration_problem = str(error)
            structlog.get_logger().error("bad configuration: the last good one stays", error=str(error))
            return
        self.facts.config_reloads["applied"] += 1
        self.configuration_problem = None
        structlog.get_logger().info("configuration reloaded", warnings=list(configuration.warnings))
        if configuration.settings.http != self._listeners:
            structlog.get_logger().warning("the listeners stay where they are until the agent is started again")
        self.roster.configure(configuration)
        if self.cluster:
            self.cluster.configure(configuration)

    @property
    def _period(self) -> float:
        return float(self.roster.configuration.settings.resync.seconds)

    # -- what is --------------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        while True:
            await self.attendance.ready.wait()  # before it, all pods are put into the queue: once is enough
            keys = await self.queue.get(_STEPS_AT_ONCE)
            await self.attendance.ready.wait()
            pods = [pod for key in keys if (pod := self.roster.get(key))]
            await self._reconciler.recognise(pods)
            for key in keys:
                for urgent in self.queue.urgent():
                    await self._take(urgent)
                await self._take(key)

    async def _take(self, key: PodKey) -> None:
        """Take one step with a pod, and tell those who wait for it."""
        await self.attendance.ready.wait()
        waiting = self._stepped.pop(key, [])
        if pod := self.roster.get(key):
            async with pod.stepping:
                if self.roster.get(key) is pod:  # it may have been dropped meanwhile
                    await self._step(pod)
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def _serve(self, key: PodKey) -> None:
        """Take the pod's next step now, beside what is being done with others; return once it is where it should be.

        Raises:
            KernelError: a few steps failed.
        """
        self.queue.discard(key)
        with self.worker.rush.call():
            await self._take(key)
            if self._failure(key):
                await self._tried(key)

    async def _attend(self, key: PodKey) -> None:
        """Let the pod's next step come before all others'; return once it has brought the pod to where it should be.

        A step that the kernel refuses is taken again a few times.
        """
        self.queue.add(key, urgent=True)
        with self.worker.rush.call():
            await self._tried(key)

    async def _tried(self, key: PodKey) -> None:
        """Wait until a step of the pod has succeeded, or is refused.

        Raises:
            KernelError: it failed a few times.
        """
        problem = ""
        for _ in range(_MOST_TRIES):
            stepped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._stepped.setdefault(key, []).append(stepped)
            await stepped
            problem = self._failure(key)
            if not problem:
                return
        raise KernelError(f"{key}: {problem}")

    def _failure(self, key: PodKey) -> str:
        """Return why the pod's last step failed; empty if it did not, or was refused."""
        pod = self.roster.get(key)
        if pod is None or not pod.failures or pod.stage is Stage.REFUSED:
            return ""
        return pod.detail or "a step failed"

    async def _sandboxes(self, sandboxes: Sandboxes) -> None:
        await self.attendance.ready.wait()  # pods would wait for a programmer that cannot serve them yet
        with suppress(UnreachableError):
            await self._reconciler.prepare(self.roster.base)
        await sandboxes.run()

    async def _step(self, pod: Pod) -> None:
        begin = self._clock()
        try:
            again = await self._reconciler.step(pod)
        except NodeagentError as error:
            again, result = self._failed(pod, error), "refused" if isinstance(error, RefusedError) else "failed"
        except Exception as error:  # noqa: BLE001  # one pod's trouble must not be everybody's
            where = traceback.extract_tb(error.__traceback__)[-1]
            structlog.get_logger().error("internal error", pod=str(pod.key), error=repr(error), where=str(where))
            again, result = self._failed(pod, error), "failed"
        else:
            pod.failures, result = 0, "ok"
        if self.cluster and pod.source is Source.CLUSTER:
            self.cluster.report(pod)
        self.facts.reconciliations[result] += 1
        self.facts.reconciliation_seconds.observe(self._clock() - begin)
        if pod.is_gone and pod.retiring:
            self.roster.drop(pod)
        elif again is not None:
            self.queue.add(pod.key, max(0.0, again))

    def _failed(self, pod: Pod, error: Exception) -> float:
        """Say what went wrong, once; return when to try again."""
        pod.failures += 1
        if isinstance(error, UnreachableError):
            return backoff(pod.failures, longest=2.0)
        pod.in_sync = False
        if isinstance(error, RefusedError):
            self.facts.refuse(pod, error.reason)
            pod.stage = Stage.REFUSED
        elif pod.stage is not Stage.INTERCEPTED or isinstance(error, InputError):
            pod.stage = Stage.PENDING
        if pod.detail != str(error):
            structlog.get_logger().warning("not done", pod=str(pod.key), stage=pod.stage.value, error=str(error))
        pod.detail = str(error)
        return backoff(pod.failures, longest=5.0 if isinstance(error, InputError) else 30.0)

    async def _sweep(self) -> None:
        for number in itertools.count():
            began = time.monotonic()
            while (left := began + self._period - time.monotonic()) > 0:  # noqa: ASYNC110  # an edited period counts at once
                await asyncio.sleep(min(left, _NOTICED))
            await self.attendance.ready.wait()
            try:
                await self.drift.sweep()
                is_measured = number % _SWEEPS_A_MEASUREMENT == 0
                if is_measured:
                    await self.drift.measure()
                await self.drift.knock(everywhere=is_measured)
            except UnreachableError as error:
                structlog.get_logger().warning("no sweep", error=str(error))

    async def _count(self) -> None:
        while True:
            await self.worker.rush.let_by()
            await self.census.tick()

    async def _guard(self) -> None:
        while True:
            await self.attendance.ready.wait()
            await self.guards.tick()

    async def _containers(self) -> None:
        containers, arrivals = Containers(), Arrivals(self.roster, self.enrolment, self.queue, self._clock)
        try:
            while True:
                containers.watch_places(self._places())
                added = containers.follow(self.roster)
                if not added:
                    await readable(containers.fileno(), PERIOD if arrivals.is_any else _CONTAINERS_SECONDS)
                changed = added | containers.changed()
                for key in changed:
                    self.queue.add(key)
                if self.sandboxes:
                    self.sandboxes.prune()
                for pod in self.roster:  # its first directory is made after its manifest, as a rule
                    is_waiting = pod.counted.cgroup is None and pod.manifest.uid and pod.stage is not Stage.SKIPPED
                    if is_waiting and self.enrolment.find_cgroup(pod):
                        self.queue.add(pod.key)
                if not self.hears_runtime:
                    arrivals.stir(changed)
                    arrivals.look()
        finally:
            containers.close()

    @property
    def hears_runtime(self) -> bool:
        """Whether pods wait for us before they start."""
        return self.sandboxes is not None and self.sandboxes.runtime is not None

    def _places(self) -> Iterator[str]:
        """Yield the directories that pods begin in."""
        if self.enrolment.cgroups:
            yield from pod_places(self.enrolment.cgroups)
        if self.options.netns_dir:
            yield self.options.netns_dir
