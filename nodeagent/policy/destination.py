"""Destinations as people write them: ``IP:PORT``, ``[IPv6]:PORT``, ``…/udp``."""

import re
from ipaddress import IPv4Address, IPv6Address

from nodeagent.model import Address, Protocol
from nodeagent.policy.grammar import HIGHEST_PORT

_DESTINATION_RE = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<v4>[0-9.]{7,15})):(?P<port>[0-9]{1,5})")


ALLOWED = "give IP:PORT, [IPv6]:PORT, and /udp for UDP"


def parse_destination(text: str) -> tuple[Address, int, Protocol]:
    """Return address, port and protocol.

    >>> parse_destination("[2001:db8::10]:53/udp")[1:]
    (53, <Protocol.UDP: 'udp'>)

    Raises:
        ValueError: *text* is no destination; :data:`ALLOWED` says what is.
    """
    where, _, protocol = text.partition("/")
    found = _DESTINATION_RE.fullmatch(where)
    if not found or protocol == Protocol.OTHER or int(found["port"]) > HIGHEST_PORT:
        raise ValueError(text)
    address = IPv6Address(found["v6"]) if found["v6"] else IPv4Address(found["v4"])
    port, chosen = int(found["port"]), Protocol(protocol or "tcp")
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped, port, chosen  # on the wire it is IPv4
    return address, port, chosen
