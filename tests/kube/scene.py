"""What tests of the API client share: a client, a watch that runs, pods, and waiting for what must come."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from nodeagent.kube.client import Client, Patience
from nodeagent.kube.credentials import Credentials
from nodeagent.kube.watch import PodWatch, Rhythm
from nodeagent.model import PodManifest, Snapshot
from nodeagent.policy import DEFAULT, deciding_keys
from tests.kube.fake import Object

PATIENT = Patience()
USUAL = Rhythm()
KEYS = deciding_keys(DEFAULT)
NODE = "node-1"
PATIENCE = 60.0
"""Seconds for what must come; nothing waits so long where things work."""
ANNOTATION = "nodeagent.io/excludeOutboundPorts"


def pod(name: str, ports: str = "3306", node: str = NODE) -> Object:
    """Return a pod as one would create it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "annotations": {ANNOTATION: ports}},
        "spec": {"nodeName": node, "containers": [{"name": "app", "image": "none"}]},
    }


@asynccontextmanager
async def connected(credentials: Credentials, patience: Patience = PATIENT) -> AsyncIterator[Client]:
    """Give a client with fixed credentials."""

    async def load() -> Credentials:
        return credentials

    async with Client(load, patience) as client:
        yield client


@asynccontextmanager
async def watching(client: Client, node: str = NODE, rhythm: Rhythm = USUAL) -> AsyncIterator[PodWatch]:
    """Run a watch for the length of the block."""
    watch = PodWatch(client, node, KEYS, rhythm)
    task = asyncio.create_task(watch.run(0))
    try:
        yield watch
    finally:
        assert not task.done() or task.result(), "the watch ended by itself"
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def seen(watch: PodWatch, holds: Callable[[dict[str, PodManifest]], object]) -> dict[str, PodManifest]:
    """Wait until *holds* is true of the pods by name; return them."""
    async with asyncio.timeout(PATIENCE):
        found = watch.snapshot
        while found is None or not holds(_by_name(found)):
            found = await watch.changed()
    return _by_name(found)


async def names(watch: PodWatch, *expected: str) -> None:
    """Wait until the pods are those."""
    await seen(watch, lambda pods: set(pods) == set(expected))


async def until(holds: Callable[[], object]) -> None:
    """Wait until *holds*, which nothing tells of."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110  # not all that is waited for tells when it comes
            await asyncio.sleep(0.01)


def run(scene: Callable[[], Awaitable[None]]) -> None:
    """Run *scene* in a loop of its own."""

    async def whole() -> None:
        await scene()

    asyncio.run(whole())


def _by_name(found: Snapshot) -> dict[str, PodManifest]:
    return {manifest.name: manifest for manifest in found.pods.values()}
