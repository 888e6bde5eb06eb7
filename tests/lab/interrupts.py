"""Ctrl-C while a process is being started: it must not be lost between its birth and the variable that holds it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the block is through; what it started is known by then, and can be ended.

    A child forked after the signal came never hears of it.  Its own Ctrl-C is as ever: exec resets a
    handler, which it would not do for a blocked signal.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(held[0], None)
