"""What left the pods: kernel slots into flows, totals and series that only grow.  Pure: no I/O, no clock."""

from nodeagent.ledger.judge import Judgement, judge
from nodeagent.ledger.reasons import LEAKS, NUMBERS

__all__ = ["LEAKS", "NUMBERS", "Judgement", "judge"]
