"""A rule set encoded for the legacy tables: what the child hands over, and what is replayed."""

import msgspec

from nodeagent.legacy.entries import Table


class Encoded(msgspec.Struct, frozen=True):
    """One table before and after our rules, as the kernel of a scratch netns reported it."""

    pristine: Table
    ours: Table


class Result(msgspec.Struct, frozen=True):
    """What the child found out; ``error`` is empty if it worked."""

    tables: tuple[Encoded, ...] = ()
    error: str = ""
