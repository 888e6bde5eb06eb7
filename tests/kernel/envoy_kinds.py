"""The connections that are made past and through a real Envoy: a few thousand, of each kind that leaves a pod.

``docs/envoy.md`` shows this table; a test holds it against this one.
"""

from dataclasses import dataclass
from typing import Final

from tests.lab import Dial

REFUSING: Final = 4444
"""The port that nobody in the world listens on."""


@dataclass(frozen=True)
class Kind:
    """Some connections of one kind, and what the ledger should say of each."""

    dial: Dial
    times: int
    verdict: str
    reason: str
    is_kept: bool = False
    """All open at once, each used several times, instead of one after the other."""


def _to(address: str, port: int = 443, uid: int = 1000) -> Dial:
    return Dial(address, port, uid=uid, gid=uid)


KINDS: Final = {
    "short": Kind(_to("203.0.113.10"), 900, "intercepted", "included"),
    "short, IPv6": Kind(_to("2001:db8::10"), 900, "intercepted", "included"),
    "keep-alive": Kind(_to("203.0.113.11"), 60, "intercepted", "included", is_kept=True),
    "keep-alive, IPv6": Kind(_to("2001:db8::11"), 60, "intercepted", "included", is_kept=True),
    "refused by the far side": Kind(_to("203.0.113.10", REFUSING), 150, "intercepted", "included"),
    "refused by the far side, IPv6": Kind(_to("2001:db8::10", REFUSING), 150, "intercepted", "included"),
    "an excluded range": Kind(_to("198.51.100.20"), 400, "bypassed", "excluded_cidr"),
    "an excluded range, IPv6": Kind(_to("2001:db8:5::1"), 400, "bypassed", "excluded_cidr"),
    "an excluded range, keep-alive": Kind(_to("198.51.100.21"), 40, "bypassed", "excluded_cidr", is_kept=True),
    "an excluded range, refused": Kind(_to("198.51.100.20", REFUSING), 150, "bypassed", "excluded_cidr"),
    "an excluded port": Kind(_to("203.0.113.10", 3306), 150, "bypassed", "excluded_port"),
    "an impostor": Kind(_to("203.0.113.10", uid=1337), 150, "bypassed", "impersonated_proxy"),
    "UDP": Kind(Dial("203.0.113.10", 443, "udp"), 150, "bypassed", "non_tcp"),
    "UDP, IPv6": Kind(Dial("2001:db8::10", 443, "udp"), 150, "bypassed", "non_tcp"),
}
