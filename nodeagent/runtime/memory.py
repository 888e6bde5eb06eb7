"""Memory that was needed for a moment goes back to the kernel: the agent shares its node with what it is there for.

glibc's own ways suit processes that need again what they needed once.  An answer with 10,000 flows or a scrape takes
megabytes for some milliseconds, and a reading of all slots two; kept, they are the agent's for ever.
"""

import ctypes
from contextlib import suppress
from typing import Final

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_LARGE: Final = 128 * 1024
"""Bytes from which on a block is mapped by itself, and gone when it is freed; glibc raises this to 32 MB by itself."""


def be_frugal() -> None:
    """Let C's allocator keep little that is free; elsewhere than on glibc, change nothing."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option, value in ((_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, _LARGE), (_ARENA_MAX, 1)):
            libc.mallopt(option, value)


def give_back() -> None:
    """Return to the kernel what is free between blocks that are not: a millisecond or two."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
