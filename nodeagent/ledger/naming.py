"""What destinations and protocols are called in metrics, the API and the CLI.

A destination is the narrowest named range of the configuration that holds it, else the name of
the Service that it belongs to, else its address.  Named ranges come first because an operator
wrote them for this.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from nodeagent.model import Address, Network, Ranges, Sourced

OTHER: Final = "other"
"""The destination of what is counted without one of its own; a range of this name joins it."""

_PROTOCOLS: Final = {
    1: "icmp",
    2: "igmp",
    6: "tcp",
    17: "udp",
    33: "dccp",
    47: "gre",
    50: "esp",
    51: "ah",
    58: "icmpv6",
    132: "sctp",
    136: "udplite",
}
"""IANA's protocol numbers as far as programs use them.  A closed set: a pod cannot widen it."""

ServiceName = Callable[[Address, int], str | None]
"""Looks up the Service that an address and a port belong to: ``name.namespace``, or None."""


def protocol_name(number: int) -> str:
    """Return a protocol's name; ``other`` for what has none here, and in slots of several.

    >>> protocol_name(17), protocol_name(254)
    ('udp', 'other')
    """
    return _PROTOCOLS.get(number, OTHER)


def _no_service(_address: Address, _port: int) -> None:
    return None


@dataclass(frozen=True)
class Naming:
    """How destinations get their names.

    ``ranges`` are the named ones of the configuration; where two names have the same network,
    the first in alphabetical order is used.  ``is_unknown`` says of an address that the Service that it
    may belong to cannot be told now: what it was called before holds.
    """

    ranges: Mapping[str, tuple[Network, ...]] = field(default_factory=dict)
    service: ServiceName = _no_service
    is_unknown: Callable[[Address], bool] = lambda _address: False

    @cached_property
    def _found(self) -> Ranges:
        items = [Sourced(net, name) for name in sorted(self.ranges, reverse=True) for net in self.ranges[name]]
        return Ranges(tuple(items))

    def name(self, address: Address, port: int, before: str | None = None) -> str:
        """Return what the destination is called, which was called *before* if it was called anything.

        >>> from ipaddress import ip_address, ip_network
        >>> naming = Naming({"lan": (ip_network("10.0.0.0/8"),), "db": (ip_network("10.2.0.0/16"),)})
        >>> [naming.name(ip_address(text), 5432) for text in ("10.2.0.9", "10.3.0.9", "192.0.2.1")]
        ['db', 'lan', '192.0.2.1']
        """
        found = self._found.find(address)
        if found:
            return found.source
        if before and before != OTHER and self.is_unknown(address):
            return before
        return self.service(address, port) or str(address)
