"""Pods that are just starting, where no container runtime waits for us: looked for often, but not for long.

A pod's cgroup appears, and it is counted from its first packet on; a sandbox's cgroup appears in that, and its
processes move into their network namespace: nothing tells of that, so every few milliseconds somebody looks.
Whatever is missed here is found by what the API server says later.
"""

import time
from collections.abc import Callable, Iterable
from typing import Final

from nodeagent.agent.enrolment import Enrolment
from nodeagent.agent.pod import Pod, Source, Stage
from nodeagent.agent.queue import Queue
from nodeagent.agent.roster import Roster
from nodeagent.model import PodKey

PERIOD: Final = 0.005
"""Seconds between two looks."""
_LONGEST: Final = 10.0
"""Seconds after the last event of a pod's: from then on, the next event or the API server's word is waited for."""


class Arrivals:
    """Those of *roster*; they get their steps by *queue*."""

    def __init__(
        self, roster: Roster, enrolment: Enrolment, queue: Queue[PodKey], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._roster, self._enrolment, self._queue, self._clock = roster, enrolment, queue, clock
        self._stirred: dict[PodKey, float] = {}
        self.is_any = False
        """Whether it is worth while to look again in a few milliseconds."""

    def stir(self, keys: Iterable[PodKey]) -> None:
        """Take note that something happened in the cgroups of these pods."""
        self._stirred |= dict.fromkeys(keys, self._clock())

    def look(self) -> None:
        """Give a step to each pod that is starting and has a process."""
        starting = {pod.key: pod for pod in self._roster if _is_starting(pod)}
        now = self._clock()
        self._stirred = {key: self._stirred.get(key, now) for key in starting}
        fresh = [pod for key, pod in starting.items() if now - self._stirred[key] < _LONGEST]
        self.is_any = bool(fresh)
        for pod in fresh:
            if self._enrolment.live_containers(pod):
                self._queue.add(pod.key)


def _is_starting(pod: Pod) -> bool:
    is_clusters = pod.source is not Source.DIRECTORY and not pod.retiring
    return is_clusters and pod.stage is Stage.PENDING and pod.counted.cgroup is not None and not pod.is_known
