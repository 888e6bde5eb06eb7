"""Addresses, ports and protocols: the words that policies and rules are made of."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
DNS_PORT = 53


class Family(IntEnum):
    """An IP version; its value is what :mod:`ipaddress` calls ``version``."""

    V4 = 4
    V6 = 6

    @property
    def bits(self) -> int:
        """Length of an address: 32 or 128."""
        return 32 if self is Family.V4 else 128


class Protocol(StrEnum):
    """What the rules tell apart; everything that is neither TCP nor UDP is ``other``."""

    TCP = "tcp"
    UDP = "udp"
    OTHER = "other"


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports *first* to *last*, both included.

    >>> str(PortRange(443, 443)), str(PortRange(7000, 7100))
    ('443', '7000-7100')
    """

    first: int
    last: int

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
