"""What outlives the agent until the next boot: who is counted, by which policies, and where counts were booked."""

from nodeagent.state.store import HIGHEST_NUMBER, Store

__all__ = ["HIGHEST_NUMBER", "Store"]
