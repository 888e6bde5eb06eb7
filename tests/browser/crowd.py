"""One pod that sends a datagram to each of ten thousand destinations, and an agent that counts them."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

from tests.browser.stage import Actor, House, Stage, staged
from tests.lab import TestCgroup

FLOWS = 10_000
_ADDRESSES = 250
_FIRST = ip_address("203.0.113.1")
_OWN_PINS = ("unshare", "--mount", "sh", "-c", 'mount -t bpf bpf /sys/fs/bpf && exec "$0" "$@"')
"""Another agent may run for other tests: this one gets a BPF file system of its own."""


@contextmanager
def crowded(folder: Path, programs: Path) -> Iterator[Stage]:
    """Build it, with an agent that has all flows in its ledger."""
    actors = (Actor("shop", "crawler"),)
    with TestCgroup() as node, staged(folder, node, programs, actors, _OWN_PINS) as stage:
        crawl(stage.house("crawler"))
        stage.agent.wait(lambda: stage.agent.ask("/api/v1/flows?limit=1")["total"] >= FLOWS)
        yield stage


def crawl(house: House, flows: int = FLOWS) -> None:
    """Send the datagrams, each a byte longer than the one before; from one socket, as a crawler's resolver would."""
    with house.lab.pod.socket(
        socket.AF_INET, socket.SOCK_DGRAM, uid=1000, gid=1000, cgroup=str(house.cgroups.app.path)
    ) as sock:
        for number in range(flows):
            sock.sendto(b"x" * (1 + number % 1000), destination(number))


def destination(number: int) -> tuple[str, int]:
    """Return the address and the port that the datagram *number* goes to."""
    return str(_FIRST + number % _ADDRESSES), 20_000 + number // _ADDRESSES
