"""The words of ``nodeagent wait`` and of who answers it; nothing that is slow to import."""

from typing import Final

QUESTION: Final = b"nodeagent wait 1\n"
LENGTH: Final = 512
"""Bytes of a question, zeros included, and of an answer at most."""
STANDS, NOTHING, NOT_YET = "stands", "nothing", "not yet"
"""What an answer begins with: go on; go on, for nothing will be programmed; ask again."""
