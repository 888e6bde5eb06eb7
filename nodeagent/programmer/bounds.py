"""What an agent in another container may ask for: less than one that started its programmer itself.

Promises that no path of the agent's is ever opened: a pod is named by its UID (or hash), and looked for where the
programmer was told that cgroups are; a process that the agent names as well has to be in one that names the pod.
What counts, and where, the programmer was told.  Refuses what no agent asks for: to reset connections, and to stop
counting.  Pure but for looking for a pod's cgroup.
"""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from nodeagent.errors import InputError, Refusal, RefusedError, printable
from nodeagent.netns.inhabited import PodNetns
from nodeagent.programmer import counting_wire as more
from nodeagent.programmer import wire
from nodeagent.programmer.seam import CountingSettings
from nodeagent.programmer.serving import Request
from nodeagent.runtime.cgroups import NETNS_PATH, find_pod

MOST_PODS: Final = 1024
MOST_SLOTS: Final = 1 << 16
MOST_ADDRESSES: Final = 64

_AtOne: TypeAlias = (
    wire.Observe | wire.Apply | wire.Clear | more.Watch | more.Interfaces | more.Tracked | more.Listening
)
_AtMany: TypeAlias = more.Guard | more.Unguard


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where the programmer was told to look for pods and to count; *counting* names the cgroup v2 hierarchy."""

    counting: CountingSettings
    kept: str = NETNS_PATH
    """Where the container runtime keeps namespaces by name, whatever the agent says of that."""

    def allow(self, request: Request) -> Request:
        """Return *request* as it may be done.

        Raises:
            RefusedError: it may not.
            InputError: it names a pod that is not on this node.
        """
        match request:
            case wire.Clear(now=True) | more.StopCounting():
                raise RefusedError(
                    "only who runs nodeagent in the programmer's own container may ask for that", Refusal.NOT_ALLOWED
                )
            case (
                wire.Observe()
                | wire.Apply()
                | wire.Clear()
                | more.Watch()
                | more.Interfaces()
                | more.Tracked()
                | more.Listening()
            ):
                return self._at_one(request)
            case more.Guard() | more.Unguard():
                return self._at_many(request)
            case more.Sweep():
                return more.Sweep(self._expected(request.pods))
            case more.Recognise():
                _limit(request.rulesets, MOST_PODS, "rule sets")
                return more.Recognise(self._expected(request.pods), request.rulesets)
            case more.StartCounting():
                return more.StartCounting(self.counting)
            case more.Evict() | more.Release():
                _limit(request.slots, MOST_SLOTS, "slots")
            case _:
                pass
        return request

    def _at_one(self, request: _AtOne) -> _AtOne:
        return msgspec.structs.replace(request, target=self._target(request.target))

    def _at_many(self, request: _AtMany) -> _AtMany:
        _limit(request.targets, MOST_PODS, "pods")
        return msgspec.structs.replace(request, targets=tuple(map(self._target, request.targets)))

    def _expected(self, pods: Sequence[more.ExpectedMessage]) -> tuple[more.ExpectedMessage, ...]:
        _limit(pods, MOST_PODS, "pods")
        return tuple(msgspec.structs.replace(pod, target=self._target(pod.target)) for pod in pods)

    def _target(self, target: wire.TargetMessage) -> wire.TargetMessage:
        """Return *target* with what we know of where its pod is, whatever the agent says of that."""
        if not isinstance(target.netns, PodNetns):
            raise RefusedError(
                f"{printable(str(target.netns))}: no path and no process is taken over this socket: name a pod",
                Refusal.NOT_ALLOWED,
            )
        _limit(target.addresses, MOST_ADDRESSES, "addresses")
        name = target.netns.name
        found = find_pod(Path(self.counting.cgroup), name) if self.counting.cgroup else None
        if found is None:
            raise InputError(
                f"no cgroup v2 directory of this node names pod {printable(name)}: it may have ended, or not begun"
            )
        kept = self.kept if target.netns.kept else ""
        return msgspec.structs.replace(target, netns=PodNetns(str(found.path), name, kept, target.netns.process))


def _limit(values: Sized, most: int, what: str) -> None:
    if len(values) > most:
        raise RefusedError(f"{len(values)} {what} at once: at most {most} are taken", Refusal.NOT_ALLOWED)
