"""Samples, their medians and spread, and ratios pair by pair."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class Samples:
    """Seconds, in the order they were taken."""

    seconds: tuple[float, ...]

    def percentile(self, percent: int) -> float:
        """Return a percentile in seconds."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, round(len(ordered) * percent / 100))]

    @property
    def p50(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.seconds)

    def ratios(self, other: "Samples") -> "Samples":
        """Return *other* over this, pair by pair: how many times faster this is."""
        return Samples(tuple(b / a for a, b in zip(self.seconds, other.seconds, strict=True)))


def timed(action: Callable[[], object]) -> float:
    """Return how long *action* takes, in seconds."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def interleave(actions: Sequence[Callable[[int], object]], rounds: int) -> list[Samples]:
    """Run all *actions* once a round, so that noise hits neighbours alike; each gets the round's number."""
    taken: list[list[float]] = [[] for _ in actions]
    for number in range(rounds):
        for samples, action in zip(taken, actions, strict=True):
            samples.append(timed(partial(action, number)))
    return [Samples(tuple(samples)) for samples in taken]


def milliseconds(seconds: float) -> str:
    """Return milliseconds for a table."""
    return f"{seconds * 1e3:.2f}"


def spread(ratios: Samples) -> str:
    """Return a ratio's median with the range of nine tenths of it."""
    return f"{ratios.p50:.3g} [{ratios.percentile(5):.3g}-{ratios.percentile(95):.3g}]"
