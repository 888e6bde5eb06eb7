"""``programmer``: the half that has privileges, for agents that connect to a socket; until it is told to stop."""

import argparse
import os
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import structlog

from nodeagent.policy.settings import NO_SOCKET
from nodeagent.programmer.bounds import Bounds
from nodeagent.programmer.conversation import settle
from nodeagent.programmer.hearing import NotHearing, Relayed
from nodeagent.programmer.listener import Listener
from nodeagent.programmer.lockdown import lock_down
from nodeagent.programmer.seam import CountingSettings, Hearing
from nodeagent.runtime.cgroups import version_2
from nodeagent.runtime.priority import hurry


def run_programmer(arguments: argparse.Namespace) -> int:
    """Serve one agent after the other until SIGTERM or SIGINT; rules and counting stay when it ends."""
    lock_down()  # first: nothing that follows needs what is given up
    hurry()
    stop = _stop_descriptor()
    cgroup = version_2(Path(arguments.cgroup))
    bounds = Bounds(CountingSettings(str(cgroup), arguments.bpffs, arguments.programs))
    with closing(Listener(Path(arguments.socket), arguments.agent_uid)) as listener:
        served = settle(Path(arguments.proc))  # sockets are bound to files, not to a network namespace
        served = replace(served, hearing=_hearing(arguments.nri))
        structlog.get_logger().info("serving", socket=arguments.socket, agent_uid=arguments.agent_uid)
        listener.run(served, bounds.allow, stop)
    structlog.get_logger().info("stopped: rules and counting stay")
    return 0


def _hearing(socket: str | None) -> Hearing:
    return Relayed(Path(socket)) if socket and socket != NO_SOCKET else NotHearing()


def _stop_descriptor() -> int:
    """Return a descriptor that can be read once we are told to stop; as process 1 of a container nobody else acts."""
    stop, told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(told)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    return stop
