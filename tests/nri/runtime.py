"""A container runtime that keeps pods and tells plugins about them, in the protocol's older or newer generation.

What it does, and in which order, follows NRI's own ``adaptation`` package: one call at a time for the whole node; a
plugin that is late or gone is dropped, and the pod goes on; an error answer fails the pod; a plugin that knows no
dedicated method gets ``StateChange``; an inventory that is too long for one message is split.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self

from nodeagent.nri import messages
from nodeagent.nri.frames import LARGEST
from nodeagent.nri.session import UNIMPLEMENTED
from tests.nri.link import Link, PluginClosedError

EVENTS = {
    "RunPodSandbox": 1,
    "StopPodSandbox": 2,
    "RemovePodSandbox": 3,
    "CreateContainer": 4,
    "PostCreateContainer": 5,
    "StartContainer": 6,
    "PostStartContainer": 7,
    "StopContainer": 10,
    "RemoveContainer": 11,
}
ALWAYS_DEDICATED = {"CreateContainer", "StopContainer"}


class PodFailedError(Exception):
    """The runtime does not start the pod: a plugin answered with an error."""


@dataclass(frozen=True)
class Generation:
    """What differs between versions of NRI."""

    name: str
    dedicated: bool
    last_event: int


class Generations(Enum):
    OLD = Generation("0.8", dedicated=False, last_event=12)
    NEW = Generation("0.12", dedicated=True, last_event=15)


class Runtime:
    """A runtime at a socket.  Its pods outlive :meth:`kill`, as those of a real one do."""

    def __init__(self, path: Path, generation: Generations = Generations.NEW, timeout: float = 2.0) -> None:
        self.pods: dict[str, messages.PodSandbox] = {}
        self.containers: dict[str, messages.Container] = {}
        self.plugins: list[Link] = []
        self.dropped = 0
        self.synchronizations = 0
        self.empty_parts = 0
        self._path = path
        self._generation = generation.value
        self._timeout = timeout
        self._lock = asyncio.Lock()
        self._accepting = asyncio.Lock()
        self._links: list[Link] = []
        self._server: asyncio.Server | None = None
        self._arrived = asyncio.Condition()

    # -- its own life ---------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.kill()

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._accept, self._path)

    async def kill(self) -> None:
        """End at once; the socket's file stays, with nobody behind it."""
        if self._server:
            self._server.close()
        for link in self._links:
            link.close()
        for link in self._links:
            await link.closed()
        self.plugins.clear()
        self._links.clear()

    async def plugin(self, count: int = 1) -> Link:
        """Wait until *count* plugins are synchronized; return the last."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.plugins) >= count)
        return self.plugins[-1]

    # -- what the kubelet asks of it ------------------------------------------------------------

    async def run_pod(self, pod: messages.PodSandbox) -> None:
        await self._tell("RunPodSandbox", pod)
        self.pods[pod.id] = pod

    async def run_container(self, container: messages.Container) -> None:
        pod = self.pods[container.pod_sandbox_id]
        await self._tell("CreateContainer", pod, container)
        self.containers[container.id] = container
        for method in ("PostCreateContainer", "StartContainer", "PostStartContainer"):
            await self._tell(method, pod, container)

    async def remove_container(self, identity: str) -> None:
        container = self.containers.pop(identity)
        for method in ("StopContainer", "RemoveContainer"):
            await self._tell(method, self.pods[container.pod_sandbox_id], container)

    async def stop_pod(self, identity: str) -> None:
        await self._tell("StopPodSandbox", self.pods[identity])

    async def remove_pod(self, identity: str) -> None:
        await self._tell("RemovePodSandbox", self.pods[identity])
        del self.pods[identity]

    # -- plugins --------------------------------------------------------------------------------

    async def _tell(self, method: str, pod: messages.PodSandbox, container: messages.Container | None = None) -> None:
        async with self._lock:
            for link in tuple(self.plugins):
                if not link.events & 1 << (EVENTS[method] - 1):
                    continue
                try:
                    response = await self._call(link, method, pod, container)
                except PluginClosedError:
                    self.plugins.remove(link)
                    self.dropped += 1
                    continue
                if response.status.code:
                    raise PodFailedError(response.status.message)

    async def _call(
        self, link: Link, method: str, pod: messages.PodSandbox, container: messages.Container | None
    ) -> messages.Response:
        if self._generation.dedicated or method in ALWAYS_DEDICATED:
            request = messages.EventRequest(pod=pod, container=container)
            response = await link.call(method, request.SerializeToString())
            if response.status.code != UNIMPLEMENTED or method in ALWAYS_DEDICATED:
                return response
        change = messages.StateChangeEvent(event=EVENTS[method], pod=pod, container=container)
        return await link.call("StateChange", change.SerializeToString())

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer, self._timeout)
        self._links.append(link)
        try:
            async with self._accepting, asyncio.timeout(self._timeout):
                register = await link.registered
                assert register.plugin_name
                assert len(register.plugin_idx) == 2
                await self._configure(link)
            async with self._lock:
                await self._synchronize(link)
                self.plugins.append(link)
        except (PluginClosedError, TimeoutError):
            link.close()
            return
        async with self._arrived:
            self._arrived.notify_all()

    async def _configure(self, link: Link) -> None:
        request = messages.ConfigureRequest(
            runtime_name="fake", runtime_version="v1", request_timeout=int(self._timeout * 1000)
        )
        if self._generation.dedicated:
            request.NRI_version = self._generation.name
        response = await link.call("Configure", request.SerializeToString())
        events = messages.ConfigureResponse.FromString(response.payload).events
        valid = (1 << (self._generation.last_event - 1)) - 1
        assert not events & ~valid, f"subscribed to {events:#x}, which NRI {self._generation.name} does not know"
        link.events = events or valid

    async def _synchronize(self, link: Link) -> None:
        pods = [pod.SerializeToString() for pod in self.pods.values()]
        containers = [container.SerializeToString() for container in self.containers.values()]
        parts = list(split(pods, containers))
        parts[:0] = [messages.SynchronizeRequest() for _ in range(self.empty_parts)]
        for number, part in enumerate(parts, start=1):
            part.more = number < len(parts)
            response = await link.call("Synchronize", part.SerializeToString())
            if messages.SynchronizeResponse.FromString(response.payload).more != part.more:
                raise PluginClosedError
        self.synchronizations += 1


def split(pods: Sequence[bytes], containers: Sequence[bytes]) -> Iterable[messages.SynchronizeRequest]:
    """Yield *pods* and *containers* in messages that ttrpc takes: all in one, or halves of them."""
    whole = messages.SynchronizeRequest(pods=pods, containers=containers)
    if whole.ByteSize() < LARGEST - 1024 or len(pods) + len(containers) == 1:
        yield whole
        return
    middle, half = len(pods) // 2, len(containers) // 2
    yield from split(pods[:middle], containers[:half])
    yield from split(pods[middle:], containers[half:])
