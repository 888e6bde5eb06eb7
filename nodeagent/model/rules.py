"""A policy compiled: ordered rules as data, still independent of the backend."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from nodeagent.model.network import Family, Network, PortRange, Protocol


class Hook(StrEnum):
    """Where a chain hangs; the order of application, the reverse of removal."""

    KEEP = "keep"  # mangle OUTPUT: holds connection tracking, decides nothing
    ZONE_OUT = "zone_out"  # raw OUTPUT
    ZONE_IN = "zone_in"  # raw PREROUTING
    REDIRECT = "redirect"  # nat OUTPUT


@dataclass(frozen=True, slots=True)
class Match:
    """A conjunction; None matches everything.

    ``destination`` is a network, or the name of a :class:`RangeSet` of the same rule set.
    ``ports`` match if any of them does, and only with a protocol.  ``syn`` means the first
    packet of a TCP connection (SYN without ACK, RST, FIN).
    """

    family: Family | None = None
    out_interface: str | None = None
    not_in_interface: str | None = None
    uid: int | None = None
    gid: int | None = None
    protocol: Protocol | None = None
    destination: Network | str | None = None
    ports: tuple[PortRange, ...] = ()
    source_port: int | None = None
    syn: bool = False
    invalid: bool = False  # conntrack state INVALID


@dataclass(frozen=True, slots=True)
class Bypass:
    """Leave our chain; nothing of ours touches the packet."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """Send the connection to the sidecar's *port* on the loopback address of its family."""

    port: int


@dataclass(frozen=True, slots=True)
class Zone:
    """Track the packet in conntrack zone *number*."""

    number: int


@dataclass(frozen=True, slots=True)
class Nothing:
    """Match and go on: a rule that is there for what its match needs."""


Action: TypeAlias = Bypass | Redirect | Zone | Nothing


@dataclass(frozen=True, slots=True)
class Rule:
    """One match, one action, and why it is there."""

    match: Match
    action: Action
    why: str


@dataclass(frozen=True, slots=True)
class RangeSet:
    """Collapsed ranges of one family that are too many for plain rules."""

    name: str
    family: Family
    networks: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """A policy compiled: ordered rules per hook, and the sets that they name.

    ``id`` is 16 hex digits of a SHA-256 over the canonical form of the rest; equal rules have
    equal ids, whatever they were written like.  Hooks without rules are absent.
    """

    id: str
    chains: tuple[tuple[Hook, tuple[Rule, ...]], ...]
    sets: tuple[RangeSet, ...] = ()

    def chain(self, hook: Hook) -> tuple[Rule, ...]:
        """Return the rules at *hook*, first match first."""
        return dict(self.chains).get(hook, ())
