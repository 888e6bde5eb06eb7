"""Reasons as the ledger needs them: which are leaks, what each means, and the number of each in a folded slot."""

from enum import StrEnum
from typing import Final, NamedTuple

from nodeagent.model import Reason, Verdict

LEAKS: Final = frozenset(
    {
        Reason.BEFORE_RULES,
        Reason.PREEXISTING,
        Reason.RULES_MISSING,
        Reason.CONNTRACK_LOST,
        Reason.IMPERSONATED_PROXY,
        Reason.IPV6_UNMANAGED,
    }
)
"""The kernel bypassed what should have been intercepted: the one place that says so."""


class Kind(StrEnum):
    """Whether it should be so: what people ask next once they know what happened."""

    INTERCEPTED = "intercepted"
    CONFIGURED = "configured"
    """It bypassed the sidecar, and a rule of the policy says so."""
    LEAK = "leak"
    OBSERVED = "observed"
    """It bypassed the sidecar, in a pod that has no policy of ours to hold it against."""
    UNKNOWN = "unknown"
    PROXY = "proxy"
    """The sidecar's own upstream leg: no egress of the app's, which is counted already."""


class Meaning(NamedTuple):
    """A reason in words for people: what happened, and what may be done about it (empty: nothing need be)."""

    means: str
    advice: str = ""


MEANINGS: Final = {
    Reason.INCLUDED: Meaning("the policy sends it to the sidecar"),
    Reason.DNS_CAPTURE: Meaning("DNS, sent to the sidecar's resolver"),
    Reason.EXCLUDED_CIDR: Meaning("its address is in an excluded range"),
    Reason.EXCLUDED_PORT: Meaning("its port is excluded"),
    Reason.EXCLUDED_INTERFACE: Meaning("it leaves through an excluded interface"),
    Reason.NOT_INCLUDED: Meaning("neither its address nor its port is included"),
    Reason.NON_TCP: Meaning("not TCP: only TCP is intercepted", "QUIC is UDP; an egress policy can refuse it"),
    Reason.EXEMPT_OWNER: Meaning("it comes from the proxy's own uid or gid"),
    Reason.OBSERVED: Meaning("nobody redirects in this pod; it is only watched"),
    Reason.BEFORE_RULES: Meaning("it began before the pod's first rules", "restart the pod, and it begins anew"),
    Reason.PREEXISTING: Meaning(
        "it began before anybody counted, or under a policy that nobody remembers", "restart the pod to be sure"
    ),
    Reason.RULES_MISSING: Meaning(
        "the policy intercepts it: rules were gone, overtaken or ineffective", "find out who changes rules in the pod"
    ),
    Reason.CONNTRACK_LOST: Meaning(
        "was intercepted, then left for its own destination mid-stream", "look at the connection table's size"
    ),
    Reason.IMPERSONATED_PROXY: Meaning(
        "it has the proxy's uid or gid, and does not come from the sidecar", "run the app as another user"
    ),
    Reason.IPV6_UNMANAGED: Meaning("IPv6, by configuration left alone", "set proxy.ipv6 to intercept"),
    Reason.PROXY: Meaning("from the sidecar's container: its upstream leg"),
    Reason.OVERFLOW: Meaning("counted without a destination: the pod had no slot left"),
    Reason.UNKNOWN: Meaning("counted, not attributed"),
}
"""What each reason of the ledger means."""


def kind_of(verdict: str, reason: str) -> Kind:
    """Return whether what happened should have.

    >>> kind_of("bypassed", "excluded_cidr"), kind_of("bypassed", "rules_missing"), kind_of("intercepted", "overflow")
    (<Kind.CONFIGURED: 'configured'>, <Kind.LEAK: 'leak'>, <Kind.INTERCEPTED: 'intercepted'>)
    """
    if verdict != Verdict.BYPASSED:
        return Kind.PROXY if verdict == Verdict.PROXY else Kind.INTERCEPTED
    if reason in LEAKS:
        return Kind.LEAK
    if reason in (Reason.OVERFLOW, Reason.UNKNOWN):
        return Kind.UNKNOWN
    return Kind.OBSERVED if reason == Reason.OBSERVED else Kind.CONFIGURED


NUMBERS: Final = {
    Reason.INCLUDED: 1,
    Reason.DNS_CAPTURE: 2,
    Reason.EXCLUDED_CIDR: 3,
    Reason.EXCLUDED_PORT: 4,
    Reason.EXCLUDED_INTERFACE: 5,
    Reason.NOT_INCLUDED: 6,
    Reason.NON_TCP: 7,
    Reason.EXEMPT_OWNER: 8,
    Reason.IPV6_UNMANAGED: 9,
    Reason.OBSERVED: 10,
    Reason.BEFORE_RULES: 11,
    Reason.PREEXISTING: 12,
    Reason.RULES_MISSING: 13,
    Reason.CONNTRACK_LOST: 14,
    Reason.IMPERSONATED_PROXY: 15,
    Reason.PROXY: 16,
    Reason.OVERFLOW: 17,
    Reason.UNKNOWN: 18,
}
"""What ``port`` holds in a folded slot.  Slots outlive agents: append, never renumber."""

_BY_NUMBER: Final = {number: reason for reason, number in NUMBERS.items()}


def reason_of(number: int) -> Reason:
    """Return the reason with this number; ``unknown`` where a newer agent wrote it.

    >>> reason_of(3), reason_of(60000)
    (<Reason.EXCLUDED_CIDR: 'excluded_cidr'>, <Reason.UNKNOWN: 'unknown'>)
    """
    return _BY_NUMBER.get(number, Reason.UNKNOWN)
