"""What left the pods: kernel slots into flows, totals and series that only grow.  Pure: no I/O, no clock.

Read :mod:`~nodeagent.ledger.judge` for what happened to a flow and why, then
:mod:`~nodeagent.ledger.book` for the arithmetic, then :mod:`~nodeagent.ledger.core`.
"""

from nodeagent.ledger.choose import Limits
from nodeagent.ledger.core import RETENTION, Ledger
from nodeagent.ledger.judge import Judgement, judge
from nodeagent.ledger.memory import Account, Changes, Correction, KnownSeries, KnownSlot, Line, Memory
from nodeagent.ledger.naming import OTHER, Naming, protocol_name
from nodeagent.ledger.reasons import LEAKS, MEANINGS, NUMBERS, Kind, Meaning, kind_of
from nodeagent.ledger.reclaim import Release
from nodeagent.ledger.report import Flow, SeriesValue, Total
from nodeagent.ledger.tally import Leaked

__all__ = [
    "LEAKS",
    "MEANINGS",
    "NUMBERS",
    "OTHER",
    "RETENTION",
    "Account",
    "Changes",
    "Correction",
    "Flow",
    "Judgement",
    "Kind",
    "KnownSeries",
    "KnownSlot",
    "Leaked",
    "Ledger",
    "Limits",
    "Line",
    "Meaning",
    "Memory",
    "Naming",
    "Release",
    "SeriesValue",
    "Total",
    "judge",
    "kind_of",
    "protocol_name",
]
