"""Put the wire guard on the host's side of a pod's veth: packets that no cgroup hook can see are counted there.

    python -m nodeagent.bpf.guard PROGRAM NETNS INTERFACE...

A child that can do nothing else: it enters the namespace that has the interfaces (the host's), attaches the pinned
program to each of them (given by index), and ends.  What is no veth it refuses.  It prints, as JSON, why it could
not attach to some of them.  Attaching again replaces the program.  The guard goes when the interface does, or
with :func:`detach`.
"""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from nodeagent.bpf import syscalls
from nodeagent.errors import KernelError, printable
from nodeagent.netns.kernel import set_netns

_NAME: Final = "nodeagent"
_INGRESS: Final = 0xFFFFFFF2  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
_PRIORITY: Final = 0xACE  # ours: nobody else's filter is touched
_ALL: Final = 3  # ETH_P_ALL


def attach(program: Path, netns: Path, interfaces: Iterable[int]) -> dict[int, str]:
    """Attach the program pinned at *program* to *interfaces* of *netns*; return why some could not be had.

    Raises:
        KernelError: the child could not even begin.
    """
    return _run(str(program), str(netns), *map(str, interfaces))


def detach(netns: Path, interfaces: Iterable[int]) -> dict[int, str]:
    """Remove the guard from *interfaces* of *netns*; what is not there is no error."""
    return _run("", str(netns), *map(str, interfaces))


def _run(*arguments: str) -> dict[int, str]:
    command = [sys.executable, "-P", "-m", __name__, *arguments]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise KernelError(f"no wire guard: {printable(done.stderr.decode('utf-8', 'replace').strip()[-500:], 500)}")
    failures: dict[str, str] = json.loads(done.stdout)
    return {int(interface): why for interface, why in failures.items()}


# -- the child ----------------------------------------------------------------------------------


def main() -> None:
    """Do what the command line says, once, and end."""
    program, netns, *interfaces = sys.argv[1:]
    descriptor = syscalls.get(program) if program else None
    namespace = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    set_netns(namespace)
    json.dump(_change_all(descriptor, [int(interface) for interface in interfaces]), sys.stdout)


def _change_all(program: int | None, interfaces: Iterable[int]) -> dict[int, str]:
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415  # in the child only

    failures: dict[int, str] = {}
    with IPRoute() as netlink:
        for interface in interfaces:
            try:
                _change(netlink, program, interface)
            except NetlinkError as error:
                failures[interface] = os.strerror(error.code)
    return failures


def _change(netlink: "IPRoute", program: int | None, interface: int) -> None:  # type: ignore[name-defined]  # noqa: F821
    from pyroute2 import NetlinkError  # noqa: PLC0415

    place = {"index": interface, "parent": _INGRESS, "prio": _PRIORITY, "protocol": _ALL, "handle": 1}
    if program is None:
        try:
            netlink.tc("del-filter", "bpf", **place)
        except NetlinkError:
            return  # not there, or no clsact
        return
    [link] = netlink.get_links(interface)
    if link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") != "veth":
        raise NetlinkError(errno.EINVAL, "no veth")
    try:
        netlink.tc("add", "clsact", interface)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
    netlink.tc("replace-filter", "bpf", **place, fd=program, name=_NAME, direct_action=True)


if __name__ == "__main__":
    main()
