"""Stage what an agent must tell: a kernel without room, metrics without room."""

import socket
from itertools import count
from typing import Final

from nodeagent.bpf.layout import RESERVED, SLOTS
from tests.lab import Topology
from tests.lab.agent import RunningAgent

CAPACITY: Final = SLOTS - RESERVED
"""Flows that the kernel tells apart."""
DATAGRAM: Final = 29
"""IP bytes of each that :func:`flood` sends."""

_PORT: Final = 9
_NUMBERS: Final = count(1)


def flood(lab: Topology, number: int) -> None:
    """Send one datagram each to *number* destinations that nobody has dialled before: CAPACITY fill the map.

    Nobody answers, and nobody in the world has to hear them: some ten microseconds each.
    """
    rules = lab.world.run(["nft", "list", "chain", "inet", "world", "answers"])
    if f"dport {_PORT} drop" not in rules:
        lab.world.nft(f"insert rule inet world answers udp dport {_PORT} drop")
    with lab.pod.socket(socket.AF_INET, socket.SOCK_DGRAM, uid=1000, gid=1000) as sock:
        for _ in range(number):
            at = next(_NUMBERS)
            sock.sendto(b"x", (f"198.{18 + (at >> 16)}.{at >> 8 & 255}.{at & 255}", _PORT))


def crowd(agent: RunningAgent, configuration: str = "") -> None:
    """Leave room for one destination a pod: what else it sends on is in no destination's series."""
    agent.configure(f"{configuration}ledger: {{topDestinations: 1}}\n")
