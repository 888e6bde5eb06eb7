"""Program a pod while processes of one number come, live for a moment, and go; say as JSON what came of it.

    unshare --net --pid --fork --mount-proc python -m tests.kernel.recycle_driver COUNT CGROUP LOG

Each process has the same number, and namespaces get each other's inodes.  Only every fourth one is the pod's: the
others are in the pod's cgroup and another namespace (the host's, another pod's), or in the pod's namespace's likeness
and another cgroup.  The driver's own namespace is the host's here.
"""

import ctypes
import fcntl
import json
import os
import random
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from nodeagent.compile import compile_policy
from nodeagent.errors import NodeagentError
from nodeagent.model import Policy
from nodeagent.netns.inhabited import PodNetns
from nodeagent.netns.kernel import socket_cookie
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import Choice, Target

UID: Final = "8d6a1f4e-0c52-4b7e-9f11-1d2c3b4a5e6f"
ADDRESS: Final = "10.244.7.7"
OTHERS: Final = "10.244.7.8"
NUMBER: Final = 20000
KINDS: Final = ("pod", "host", "another pod", "another cgroup")
_CLONE_NEWNET, _SIOCSIFADDR = 0x40000000, 0x8916  # linux/sched.h, linux/sockios.h
_LAST: Final = Path("/proc/sys/kernel/ns_last_pid")
"""Of this PID namespace alone."""

_libc = ctypes.CDLL(None, use_errno=True)


def recycle(count: int, cgroup: Path, log: int) -> None:
    """Let *count* processes of one number live, one after the other; write each one's kind, cookie and inode."""
    chance, number = random.Random(15), 0
    pod, elsewhere = cgroup / f"pod{UID}" / "0123456789ab", cgroup / "podanother" / "0123456789ab"
    while number < count:
        kind = KINDS[number % len(KINDS)]
        settled, told = os.pipe()
        _LAST.write_text(str(NUMBER - 1))
        child = os.fork()
        if child == 0:
            _live(kind, elsewhere if kind == "another cgroup" else pod, told)
        os.close(told)
        said = os.read(settled, 64)
        os.close(settled)
        if child == NUMBER:  # else somebody else's process was in between: once more
            os.write(log, f"{kind}:{said.decode()}\n".encode())
            number += 1
            time.sleep(chance.uniform(0, 0.002))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _live(kind: str, cgroup: Path, told: int) -> None:
    """Be one of them until the end."""
    if kind != "host" and _libc.unshare(_CLONE_NEWNET):
        os._exit(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if kind != "host":
            address = socket.inet_aton(OTHERS if kind == "another pod" else ADDRESS)
            fcntl.ioctl(sock, _SIOCSIFADDR, struct.pack("16sHH4s8x", b"lo", socket.AF_INET, 0, address))
        inode = os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116
        (cgroup / "cgroup.procs").write_text("0")  # last: until then it is nobody's
        os.write(told, f"{socket_cookie(sock)}:{inode}".encode())
    while True:
        signal.pause()


def attempts(programmer: ChildProgrammer, cgroup: Path, recycler: int) -> Iterator[int | str]:
    """Program the pod again and again until *recycler* ends; yield the cookie of what was written, or the refusal."""
    target = Target(PodNetns(str(cgroup / f"pod{UID}"), UID), (ip_address(ADDRESS),))
    rules = compile_policy(Policy())
    while os.waitpid(recycler, os.WNOHANG) == (0, 0):
        try:
            yield programmer.apply(target, rules, Choice.NFT).found.cookie or 0
        except NodeagentError as error:
            yield type(error).__name__
            time.sleep(0.0005)


def main() -> None:
    """Do what the command line says."""
    count, cgroup, log = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    for name in (f"pod{UID}", "podanother"):
        (cgroup / name / "0123456789ab").mkdir(parents=True)
    with ChildProgrammer() as programmer:
        descriptors = Path(f"/proc/{programmer.pid}/fd")
        before = len(list(descriptors.iterdir()))
        recycler = os.fork()
        if recycler == 0:
            recycle(count, cgroup, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
            os._exit(0)
        outcomes = Counter(attempts(programmer, cgroup, recycler))
        deadline = time.monotonic() + 10
        while len(list(descriptors.iterdir())) > before + 2 and time.monotonic() < deadline:
            time.sleep(0.01)  # netfilter's sockets are closed in the background
        after = len(list(descriptors.iterdir()))
        works = programmer.backends()
    written = {outcome: times for outcome, times in outcomes.items() if isinstance(outcome, int)}
    refused = {outcome: times for outcome, times in outcomes.items() if isinstance(outcome, str)}
    print(json.dumps({"written": written, "refused": refused, "descriptors": [before, after], "works": len(works)}))


if __name__ == "__main__":
    main()
