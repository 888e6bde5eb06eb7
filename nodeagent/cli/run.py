"""``run``: the agent, until it is told to stop."""

import argparse
import asyncio
import gc
import os
import signal
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import structlog

from nodeagent.agent.cluster import ClusterOptions
from nodeagent.agent.loop import BY_PROGRAMMER, Agent, Options
from nodeagent.bpf.slots import SlotReader
from nodeagent.errors import InputError, NodeagentError, StateError
from nodeagent.files.configuration import load_configuration
from nodeagent.log import Logging
from nodeagent.policy import Configuration
from nodeagent.policy.settings import NO_SOCKET
from nodeagent.programmer.connection import ConnectedProgrammer
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import CountingSettings
from nodeagent.runtime.cgroups import mounted, version_2
from nodeagent.runtime.memory import be_frugal, give_back
from nodeagent.runtime.priority import hurry
from nodeagent.state import Store
from nodeagent.web.server import serving

_COLLECT_EVERY: Final = 20_000
_GIVE_BACK_EVERY: Final = 30.0


def run_run(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; rules and counting stay when it ends."""
    be_frugal()  # before there is a second thread
    configuration = load_configuration(arguments.config)
    for warning in configuration.warnings:
        structlog.get_logger().warning("configuration", warning=warning)
    nri = _nri(arguments, configuration)
    if not (arguments.pods_dir or arguments.kubernetes or nri):
        raise InputError("no source of pods: give --pods-dir DIR, --kubernetes, --nri SOCKET, or several of them")
    if arguments.pods_dir and arguments.programmer:
        raise InputError(
            "--pods-dir names network namespaces by paths, which a programmer of another container does not take: "
            "leave one of --pods-dir and --programmer out"
        )
    if arguments.pods_dir and not Path(arguments.pods_dir).is_dir():
        raise InputError(f"{arguments.pods_dir}: is not a directory: give one with Pod manifests (--pods-dir)")
    if nri:
        hurry()
    store, problem = _open_store(Path(arguments.state_dir))
    with closing(store):
        agent = Agent(_options(arguments, problem, nri), configuration, lambda: _start(arguments), store)
        _collect_seldom()
        try:
            asyncio.run(_run(agent, configuration))
        except* NodeagentError as group:
            raise _first(group) from None
    return 0


def _collect_seldom() -> None:
    """Let Python's collector pass over what is here already, and run less often: hardly anything of ours is cyclic.

    Each reading of 10,000 slots that have changed makes 20,000 tuples: with Python's own limits (700, 10, 10) the
    collector takes as long as the reading.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, 10, 10)


def _open_store(folder: Path) -> tuple[Store, str | None]:
    """Open the state; where that cannot be, go on with one that lasts as long as we do, and say why."""
    try:
        store = Store.open(folder)
    except StateError as error:
        structlog.get_logger().error("nothing is kept", error=str(error))
        return Store.volatile(), str(error)
    if store.began:
        structlog.get_logger().info("state", began=store.began)
    return store, None


def _options(arguments: argparse.Namespace, problem: str | None, nri: str | None) -> Options:
    cgroups = version_2(Path(arguments.cgroup)) if arguments.cgroup else mounted()
    counting = CountingSettings(str(cgroups or ""), arguments.bpffs, str(Path(arguments.state_dir, "programs")))
    cluster = _cluster(arguments)
    netns_dir = arguments.netns_dir if cluster and Path(arguments.netns_dir).is_dir() else ""
    return Options(
        arguments.pods_dir, arguments.config, cgroups, counting, _open_slots, problem, cluster, nri, netns_dir
    )


def _nri(arguments: argparse.Namespace, configuration: Configuration) -> str | None:
    """Return the runtime's socket: the one that was asked for; else the programmer's, or the configured one, if any."""
    path: str = arguments.nri or configuration.settings.runtime.nri
    if path == NO_SOCKET or not (arguments.nri or arguments.kubernetes):
        return None
    if arguments.programmer and not arguments.nri:
        return BY_PROGRAMMER
    return path if arguments.nri or Path(path).exists() else None


def _cluster(arguments: argparse.Namespace) -> ClusterOptions | None:
    if not arguments.kubernetes:
        return None
    node = arguments.node or os.environ.get("NODE_NAME")
    if not node:
        raise InputError("--kubernetes: which node is this?  Give --node NAME, or NODE_NAME in the environment")
    return ClusterOptions(node, arguments.kubeconfig, arguments.context)


def _open_slots(descriptor: int) -> SlotReader:
    """Return a reader of the slot array; the mapping outlives the descriptor."""
    try:
        return SlotReader(descriptor)
    finally:
        os.close(descriptor)


def _start(arguments: argparse.Namespace) -> ConnectedProgrammer | ChildProgrammer:
    if arguments.programmer:
        return ConnectedProgrammer(Path(arguments.programmer), arguments.programmer_uid)
    return ChildProgrammer(Logging(arguments.log_level, arguments.log_format)).__enter__()


async def _run(agent: Agent, configuration: Configuration) -> None:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # asyncio.run made it
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    http = configuration.settings.http
    giving = loop.create_task(_give_back())
    with suppress(asyncio.CancelledError):
        async with serving(agent, http.metrics, http.ui):
            await agent.run()
    giving.cancel()
    structlog.get_logger().info("stopped: rules and counting stay")


async def _give_back() -> None:
    """Let go of what the start, scrapes and answers needed."""
    while True:
        await asyncio.sleep(_GIVE_BACK_EVERY)
        give_back()


def _first(group: BaseExceptionGroup[NodeagentError]) -> NodeagentError:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
