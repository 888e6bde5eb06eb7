"""What became of a connection, judged from what the other end said about itself.  Pure: no socket is used here."""

import errno
import ipaddress
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tests.lab.wire import Address, Greeting

Proto: TypeAlias = Literal["tcp", "udp"]

Verdict: TypeAlias = Literal["intercepted", "bypassed", "diverted", "refused", "reset", "unreachable", "timeout"]
"""`intercepted`: a sidecar's listener has it, and that is not what was dialled.  `bypassed`: whoever was dialled
has it.  `diverted`: neither, so somebody else's rule sent it astray.  `refused`: an RST or an ICMP port unreachable
answered.  `reset`: it was made and then broken.  `unreachable`: an error from this side (no route, dropped
on output).  `timeout`: nobody answered, and nobody saw it."""

_VERDICT_OF: dict[int, Verdict] = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.EACCES: "unreachable",
    errno.EPERM: "unreachable",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one dial.  Fields are None where nobody told."""

    verdict: Verdict
    port: int | None = None
    """The listener's port, if intercepted."""
    seen_by: str | None = None
    """`world`, `sidecar` or `app-local`: the first that had it."""
    original_destination: Address | None = None
    """What the peer takes for the destination: SO_ORIGINAL_DST at the sidecar; never known for redirected UDP."""
    source: Address | None = None
    """The client's address as the peer sees it."""
    hops: tuple[Greeting, ...] = ()
    """Every greeting, nearest first: two of them through a sidecar that passes on."""
    answered: bool = True
    """False if a datagram arrived where `seen_by` says, but no answer came back."""
    token: str = ""
    """What finds it in the peers' logs."""
    error: str | None = None
    """The name of the errno, if one was met."""


def plain(address: str) -> str:
    """Return *address* as a peer would write it: canonical, and a v4-mapped one as IPv4.

    >>> plain("::ffff:203.0.113.10"), plain("2001:DB8::0010")
    ('203.0.113.10', '2001:db8::10')
    """
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if parsed.version == 6 else None
    return str(mapped or parsed)


def judge(dialled: Address, hops: tuple[Greeting, ...], *, token: str = "", answered: bool = True) -> Outcome:
    """Return the outcome of a connection to *dialled* that *hops*, at least one, answered."""
    first = hops[0]
    verdict: Verdict = "diverted"
    if first.at == (plain(dialled[0]), dialled[1]):
        verdict = "bypassed"
    elif first.who == "sidecar":
        verdict = "intercepted"
    return Outcome(
        verdict=verdict,
        port=first.at[1] if verdict == "intercepted" else None,
        seen_by=first.who,
        original_destination=first.original,
        source=first.source,
        hops=hops,
        answered=answered,
        token=token,
    )


def failed(error: OSError, *, token: str = "") -> Outcome:
    """Return the outcome of a dial that met *error*; an error that says nothing about the path is raised again."""
    if isinstance(error, TimeoutError):
        return Outcome(verdict="timeout", token=token, error="ETIMEDOUT")
    verdict = _VERDICT_OF.get(error.errno or 0)
    if verdict is None or error.errno is None:
        raise error
    return Outcome(verdict=verdict, token=token, error=errno.errorcode[error.errno])
