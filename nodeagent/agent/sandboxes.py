"""Pods of the container runtime, which waits for our answer before it starts a pod's first container.

Whatever the runtime does not tell, or tells late, pods stay as they are; what is in the way is told in ``problem``.

| call | what is done before the answer |
|---|---|
| RunPodSandbox | the pod is programmed |
| StartContainer | the kernel knows whose cgroup it is; a pod that is ours because of this container is programmed |
| Synchronize | all that runs is compared, and programmed where it is not |
| the others | nothing waits |
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import structlog

from nodeagent.agent.enrolment import Enrolment
from nodeagent.agent.facts import Facts
from nodeagent.agent.roster import Roster
from nodeagent.errors import NodeagentError
from nodeagent.model import Container as Running
from nodeagent.model import PodKey, PodManifest, Snapshot
from nodeagent.nri import AbsentError, Answer, Call, Container, Dial, Outcome, Plugin, Runtime, Sandbox, connect
from nodeagent.nri.pods import KEYS
from nodeagent.policy import deciding_keys
from nodeagent.policy.opting import MOST_CONTAINERS, read_sidecars


@dataclass(frozen=True, slots=True)
class Place:
    """Where the runtime is heard; *dial* connects to it."""

    name: str
    dial: Dial = connect


@dataclass(frozen=True, slots=True)
class Ears:
    """Who is told: of all pods, that there is nothing to tell, and of pods that the runtime waits for.

    *attend* is for many at once, *serve* for one.
    """

    tell: Callable[[Snapshot], None]
    nothing: Callable[[], None]
    attend: Callable[[PodKey], Awaitable[None]]
    serve: Callable[[PodKey], Awaitable[None]]


@dataclass(frozen=True)
class _Entry:
    """A sandbox, and its containers that are known to run."""

    sandbox: Sandbox
    containers: dict[str, Container] = field(default_factory=dict)

    @property
    def key(self) -> PodKey:
        return PodKey(self.sandbox.namespace, self.sandbox.name, self.sandbox.uid, "")

    @cached_property
    def manifest(self) -> PodManifest:
        return describe(self.sandbox, self.containers.values())


class Sandboxes:
    """Pods as the runtime at *place* tells of them; a :class:`~nodeagent.nri.Handler`."""

    def __init__(self, place: Place, ears: Ears, roster: Roster, enrolment: Enrolment, facts: Facts) -> None:
        self._place = place
        self._ears, self._roster, self._enrolment, self._facts = ears, roster, enrolment, facts
        self._entries: dict[str, _Entry] = {}
        self.runtime: Runtime | None = None
        """Who is at the other end; None while nobody is, and pods start unseen."""
        self.problem: str | None = "the container runtime has not answered yet"
        self.was_connected = False

    async def run(self) -> None:
        """Answer the runtime until cancelled."""
        await Plugin(self._place.name, self, dial=self._place.dial).run()

    def prune(self) -> None:
        """Forget pods whose cgroup has gone: not every end is told."""
        if self._enrolment.cgroups:
            gone = [name for name, entry in self._entries.items() if not self._has_cgroup(entry)]
            for name in gone:
                del self._entries[name]
            if gone:
                self._tell()

    def _has_cgroup(self, entry: _Entry) -> bool:
        pod = self._roster.get(entry.key)
        return pod is None or self._enrolment.find_cgroup(pod) is not None

    # -- what the runtime asks ------------------------------------------------------------------

    @property
    def keys(self) -> frozenset[str]:
        """The annotations that decide anything."""
        return KEYS | deciding_keys(self._roster.configuration).annotations

    async def synchronize(self, sandboxes: Sequence[Sandbox], containers: Sequence[Container]) -> None:
        """Take over all that there is; sandboxes that have ended are nobody's."""
        self._entries = {sandbox.id: _Entry(sandbox) for sandbox in sandboxes if sandbox.netns or sandbox.pid}
        for container in containers:
            if entry := self._entries.get(container.pod_sandbox_id):
                entry.containers[container.id] = container
        self._tell()
        await asyncio.gather(*(self._ears.attend(key) for key in {entry.key for entry in self._entries.values()}))

    async def run_sandbox(self, sandbox: Sandbox) -> None:
        """Program a pod that has its network, and no container yet."""
        entry = _Entry(sandbox)
        self._entries.pop(sandbox.id, None)
        self._entries[sandbox.id] = entry
        self._tell()
        if pod := self._roster.get(entry.key):
            self._roster.hold(pod)
            await self._ears.serve(pod.key)

    async def start_container(self, sandbox: Sandbox, container: Container) -> None:
        """Let a container be known before its first process begins."""
        entry = self._entries.setdefault(sandbox.id, _Entry(sandbox))
        pod = self._roster.get(entry.key)
        live = self._enrolment.live_containers(pod) if pod else None
        kept = {name: known for name, known in entry.containers.items() if live is None or name in live}
        self._entries[sandbox.id] = _Entry(entry.sandbox, {**kept, container.id: container})
        self._tell()
        await self._ears.serve(entry.key)

    async def remove_container(self, sandbox: Sandbox, container: Container) -> None:
        """Forget a container."""
        if entry := self._entries.get(sandbox.id):
            kept = {name: known for name, known in entry.containers.items() if name != container.id}
            self._entries[sandbox.id] = _Entry(entry.sandbox, kept)
            self._tell()

    async def stop_sandbox(self, sandbox: Sandbox) -> None:
        """Forget a pod that has ended, as far as the runtime is concerned."""
        if self._entries.pop(sandbox.id, None):
            self._tell()

    async def remove_sandbox(self, sandbox: Sandbox) -> None:
        """Forget a pod that has ended."""
        await self.stop_sandbox(sandbox)

    def answered(self, answer: Answer) -> None:
        """Take note of an answer: the runtime waits no longer, and a pod that was not served in time is late."""
        self._facts.runtime_answers[answer.outcome.value] += 1
        self._facts.runtime_answer_seconds.observe(answer.seconds)
        log = structlog.get_logger().bind(call=answer.call.value, milliseconds=round(answer.seconds * 1000, 1))
        for problem in answer.problems:
            log.warning("a call of the container runtime failed", error=str(problem))
        pod = answer.sandbox and self._roster.get(_Entry(answer.sandbox).key)
        if pod and answer.call is Call.RUN_SANDBOX:
            pod.is_held = False
            log.debug("answered", pod=str(pod.key), outcome=answer.outcome.value)
            if answer.outcome is not Outcome.DONE:
                self._facts.note_late(pod, f"the runtime was answered before it was programmed: {answer.outcome.value}")

    def connected(self, runtime: Runtime) -> None:
        """Take note that pods wait for us from now on."""
        self.runtime, self.problem, self.was_connected = runtime, None, True
        structlog.get_logger().info("the container runtime waits for us", runtime=runtime.name, version=runtime.version)
        self._tell()

    def disconnected(self, error: NodeagentError) -> None:
        """Take note that pods start unseen."""
        is_nothing_new = isinstance(error, AbsentError) and not self.was_connected
        self.problem = None if is_nothing_new else str(error)
        was_connected, self.runtime = self.runtime is not None, None
        if was_connected:
            self._tell()
        self._ears.nothing()

    def _tell(self) -> None:
        """Tell of all pods; of several sandboxes of one pod, the last one that has a network."""
        entries = sorted(
            self._entries.values(), key=lambda entry: (entry.sandbox.pid is not None, bool(entry.sandbox.ips))
        )
        found = {entry.key: entry.manifest for entry in entries}
        self._ears.tell(Snapshot(found, is_current=self.runtime is not None))


def describe(sandbox: Sandbox, containers: Iterable[Container]) -> PodManifest:
    """Return what the runtime knows of a pod: of its containers, those that it has started."""
    known = list(containers)[:MOST_CONTAINERS]
    return PodManifest(
        name=sandbox.name,
        namespace=sandbox.namespace,
        uid=sandbox.uid,
        annotations=sandbox.annotations,
        pod_ips=sandbox.ips,
        host_network=sandbox.netns is None,
        containers={container.id: container.name for container in known},
        sidecars=read_sidecars(sandbox.annotations),
        labels=sandbox.labels,
        running=tuple(Running(container.name, container.uid, container.gid) for container in known),
        process=sandbox.pid,
    )
