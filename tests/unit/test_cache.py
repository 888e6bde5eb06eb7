"""What is remembered is bounded by its bytes, whatever pods hold."""

import tracemalloc
from collections.abc import Callable

import pytest

from nodeagent.netlink import attribute
from nodeagent.nft import state
from nodeagent.nft.cache import cached_by_bytes


class Counting:
    """A function of bytes and a word, and what it was really asked."""

    def __init__(self, limit: int) -> None:
        self.asked: list[bytes] = []
        self.cached = cached_by_bytes(limit)(self._work)

    def _work(self, raw: bytes, word: str) -> tuple[bytes, str]:
        self.asked.append(raw[:1])
        return raw, word


@pytest.mark.parametrize(
    ("keys", "computed"),
    [
        pytest.param("aa", "a", id="the same is computed once"),
        pytest.param("abab", "ab", id="two that fit are both kept"),
        pytest.param("abca", "abca", id="a third pushes out the one that was asked longest ago"),
        pytest.param("abacab", "abcb", id="what was asked again stays"),
        pytest.param("LL", "LL", id="what is longer than the limit is computed each time"),
        pytest.param("abLab", "abL", id="and pushes out nothing"),
    ],
)
def test_results_are_kept_while_their_keys_fit(keys: str, computed: str) -> None:
    function = Counting(limit=2 * (1000 + 128))
    for key in keys:
        raw = key.encode() * (1000 if key.islower() else 3000)
        assert function.cached(raw, "x") == (raw, "x")
    assert b"".join(function.asked).decode() == computed


def test_another_argument_is_another_result() -> None:
    function = Counting(limit=10_000)
    assert [function.cached(b"a", word) for word in "xyx"] == [(b"a", "x"), (b"a", "y"), (b"a", "x")]
    assert len(function.asked) == 2


def _counter(size: int, number: int) -> bytes:
    """Return a rule of one expression that is *size* bytes long."""
    data = attribute(1, b"counter\0") + attribute(
        2, attribute(1, number.to_bytes(8, "big")) + attribute(9, bytes(size))
    )
    return attribute(1, data)


@pytest.mark.parametrize(
    "remember",
    [
        pytest.param(
            lambda number: state._steady(_counter(30_000, number).replace(b"counter", b"unknown")), id="rules"
        ),
        pytest.param(lambda number: state._changed(_counter(30_000, number), None), id="rules with counters"),
    ],
)
def test_long_rules_of_others_do_not_fill_the_memory(remember: Callable[[int], object]) -> None:
    tracemalloc.start()
    try:
        for number in range(400):
            remember(number)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 4 << 20, "of the 12 MB that were shown"
