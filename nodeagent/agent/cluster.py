"""Pods of the API server, and what it is told of them: one watch, and Events.

Whatever fails between us and it, for however long, pods stay as they were; the trouble is told in ``problem``.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from nodeagent.agent.pod import Pod, Stage
from nodeagent.kube.access import load_credentials
from nodeagent.kube.client import Client
from nodeagent.kube.events import Events, Kind
from nodeagent.kube.services import ServiceNames
from nodeagent.kube.watch import PodWatch
from nodeagent.model import PodKey, Snapshot
from nodeagent.policy import Configuration, Resolution, Skip, deciding_keys
from nodeagent.policy.dialects import is_ours


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Whose pods: those of *node*; empty ``kubeconfig`` and ``context`` stand for what is found there."""

    node: str
    kubeconfig: str = ""
    context: str = ""


class Cluster:
    """The API server's pods of one node; *tell* is told what it says.

    Raises:
        InputError: that is no node's name.
    """

    def __init__(
        self,
        options: ClusterOptions,
        configuration: Configuration,
        tell: Callable[[Snapshot], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell, self._tells_events = tell, configuration.settings.kubernetes.events
        self._jitter = float(configuration.settings.kubernetes.start_jitter_seconds)
        self._client = Client(lambda: load_credentials(options.kubeconfig, options.context))
        self._watch = PodWatch(self._client, options.node, deciding_keys(configuration), clock=clock)
        self._events = Events(self._client, options.node, clock)
        self.services = ServiceNames(self._client, configuration.service_ranges, clock)

    @property
    def problem(self) -> str | None:
        """What is in the way; None while the watch stands."""
        return self._watch.problem

    @property
    def is_known(self) -> bool:
        """Whether its pods were heard of at all."""
        return self._watch.snapshot is not None

    @property
    def age(self) -> float:
        """Seconds since the server was last heard."""
        return self._watch.age

    async def run(self, *, at_once: bool) -> None:
        """Watch until cancelled; *at_once* leaves out the random wait of a node's first agent."""
        async with self._client, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch.run(0.0 if at_once else self._jitter))
            tasks.create_task(self._events.run())
            while True:
                self._tell(await self._watch.changed())

    def configure(self, configuration: Configuration) -> None:
        """Let *configuration* be in force from now on."""
        self._tells_events = configuration.settings.kubernetes.events
        self._watch.select(deciding_keys(configuration))
        self.services.configure(configuration.service_ranges)

    def judge(self, pod: Pod, resolution: Resolution) -> None:
        """Let the pod's owner know what is wrong with its annotations; of a pod that is not ours, with ours alone."""
        skipped = pod.wanted.skipped
        if skipped is Skip.NOT_OPTED_IN:
            rejected = tuple(rejection for rejection in resolution.rejected if is_ours(rejection.key))
            resolution = replace(resolution, rejected=rejected)
        elif skipped:
            resolution = replace(resolution, rejected=(), unknown_keys=())
        if self._tells_events:
            self._events.judge(_apis_key(pod), resolution)

    def report(self, pod: Pod) -> None:
        """Let the pod's owner know that it is not intercepted although it should be, or that it is."""
        is_refused = pod.stage is Stage.REFUSED
        is_others = pod.stage is Stage.OBSERVED and bool(pod.foreign) and pod.wanted.ruleset is not None
        if self._tells_events and (is_refused or is_others):
            self._events.report(_apis_key(pod), Kind.NOT_INTERCEPTED, pod.detail)
        else:
            self._events.withdraw(_apis_key(pod), Kind.NOT_INTERCEPTED)


def _apis_key(pod: Pod) -> PodKey:
    """Return the pod's key by the UID that the API server knows; a static pod's is its mirror's."""
    return pod.key._replace(uid=pod.manifest.uid)
