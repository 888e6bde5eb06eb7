"""Reasons as the ledger needs them: which are leaks, and the number of each in a folded slot."""

from typing import Final

from nodeagent.model import Reason

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
