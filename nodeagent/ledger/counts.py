"""Arithmetic on counters, field by field."""

from operator import add, sub
from typing import Final

from nodeagent.model import Counters

ZERO: Final = Counters()


def plus(a: Counters, b: Counters) -> Counters:
    """Return the sum; where one of the two is nothing, the other itself: thousands of lines have one slot each.

    >>> plus(Counters(connections=1), Counters(connections=2, bytes=60)).connections
    3
    >>> plus(ZERO, more := Counters(connections=1)) is more
    True
    """
    if a is ZERO:
        return b
    return a if b is ZERO else Counters._make(map(add, a, b))


def minus(a: Counters, b: Counters) -> Counters:
    """Return the difference; fields may be negative."""
    return a if b is ZERO else Counters._make(map(sub, a, b))


def most(a: Counters, b: Counters) -> Counters:
    """Return the larger of each field."""
    return Counters._make(map(max, a, b))


def least(a: Counters, b: Counters) -> Counters:
    """Return the smaller of each field."""
    return Counters._make(map(min, a, b))
