"""Starts a node and cleans up behind it: `python -m tests.cluster.keeper DIRECTORY PROGRAMS [OWNER]`.

It makes the cgroups, starts the node as process 1 of a PID namespace, and waits until somebody connects to
`DIRECTORY/keeper` (which asks it to end the cluster), until the node ends, or until the process OWNER, which
must be its parent, has gone.  Then it kills the one process that it has; the kernel kills all others of that
namespace, and their mounts and networks go with them.  What is left are cgroups and files, which it removes.

If the keeper itself is killed, so is the node; the cgroups stay until `directory.sweep` is called for its directory.
"""

import ctypes
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

from tests.cluster import cgroups
from tests.cluster.directory import CGROUPS, HANDED_ON, KEEPER, NODE_PID, sweep
from tests.lab.process import watch_parent

_CLONE_NEWNS, _CLONE_NEWCGROUP, _CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000  # linux/sched.h
_CLONE_NEWIPC, _CLONE_NEWPID, _CLONE_NEWNET = 0x08000000, 0x20000000, 0x40000000
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Keep one cluster until its end."""
    directory, programs, owner = Path(sys.argv[1]), sys.argv[2], [int(pid) for pid in sys.argv[3:]]
    parent = watch_parent()
    if owner and os.getppid() not in owner:
        return  # it has gone already
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / KEEPER))
        listener.listen()
        hierarchies = cgroups.hierarchies(f"nodeagent-cluster-{os.getpid()}")
        # Written first: whoever finds this file knows what to remove.
        (directory / CGROUPS).write_text("".join(f"{hierarchy.directory}\n" for hierarchy in hierarchies))
        handed_on = ((hierarchy.mountpoint, hierarchy.missing_controllers()) for hierarchy in hierarchies)
        (directory / HANDED_ON).write_text("".join(f"{root} {' '.join(names)}\n" for root, names in handed_on if names))
        try:
            for hierarchy in hierarchies:
                hierarchy.make()
            node = _start_node(directory, programs, hierarchies)
            (directory / NODE_PID).write_text(str(node))
            asking = _wait_for_the_end(listener, node, parent if owner else None)
            os.kill(node, signal.SIGKILL)
            os.waitpid(node, 0)  # returns when the last process of the namespace has gone
        finally:
            sweep(directory)
        if asking:
            asking.close()  # tells the other side that nothing is left


def _start_node(directory: Path, programs: str, hierarchies: list[cgroups.Hierarchy]) -> int:
    """Start process 1 of the node; return its id out here."""
    _check(_libc.unshare(_CLONE_NEWPID), "make a PID namespace")
    node = os.fork()
    if node == 0:
        try:
            _become_node(directory, programs, hierarchies)
        except OSError as error:
            print(f"the node cannot start: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    return node


def _become_node(directory: Path, programs: str, hierarchies: list[cgroups.Hierarchy]) -> NoReturn:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "ask to die with the keeper")
    for hierarchy in hierarchies:
        (hierarchy.directory / "cgroup.procs").write_text("0")  # zero: whoever writes
    # After the move: where a process is when it makes a cgroup namespace is what the namespace has for a root.
    everything = _CLONE_NEWNS | _CLONE_NEWCGROUP | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWNET
    _check(_libc.unshare(everything), "make the node's namespaces")
    command = [sys.executable, "-S", "-m", "tests.cluster.node", str(directory), programs]
    os.execv(sys.executable, command)  # noqa: S606 - no shell is what is wanted


def _wait_for_the_end(listener: socket.socket, node: int, owner: int | None) -> socket.socket | None:
    """Return when the cluster has to end; if somebody asked for it, with the connection on which they wait."""
    watched = [listener.fileno(), os.pidfd_open(node)] + ([] if owner is None else [owner])
    ready, _, _ = select.select(watched, [], [])
    return listener.accept()[0] if listener.fileno() in ready else None


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {what}: {os.strerror(number)}; a cluster needs root")


if __name__ == "__main__":
    main()
