"""What must change in a netns so that it holds what it should.  Pure.

An empty plan is the one definition of *converged*: for ``apply``, ``diff``, the agent's loop,
the tests and the metric.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher

from nodeagent.model import (
    BackendName,
    Change,
    ChangeKind,
    KernelRule,
    KernelState,
    Plan,
    Program,
    Reading,
)

_MATCHER_LIMIT = 250_000
"""Pairs of rules that may be looked at to find the fewest changes: about 500 against 500."""

_Rules = tuple[KernelRule, ...]


def make_plan(
    wanted: Program | None, found: Reading, backend: BackendName, leftover: KernelState | None = None
) -> Plan:
    """Return the changes that lead from what was *found* to what is *wanted*.

    *wanted* is None where nothing of ours should stand.  *leftover* is ours in the other
    backend: all of it is extra.
    """
    target = wanted.state.chains if wanted else {}
    present = found.state.chains if found.state else {}
    changes = [
        *(Change(ChangeKind.AHEAD, "strangers", n, text) for n, text in enumerate(found.ahead, 1)),
        *_compare(target, present),
        *(_compare({}, leftover.chains) if leftover else ()),
    ]
    return Plan(backend, wanted.ruleset_id if wanted else None, tuple(changes))


def _compare(target: Mapping[str, _Rules], present: Mapping[str, _Rules]) -> Iterator[Change]:
    for chain in sorted({*target, *present}):
        wanted, found = target.get(chain, ()), present.get(chain, ())
        if wanted and not found:
            yield from (Change(ChangeKind.MISSING, chain, n, rule.text) for n, rule in enumerate(wanted, 1))
            continue
        if wanted is found or [rule.image for rule in wanted] == [rule.image for rule in found]:
            if chain not in present:
                yield Change(ChangeKind.MISSING, chain, 0, "the empty chain")
            elif chain not in target:
                yield Change(ChangeKind.EXTRA, chain, 0, "the empty chain")
            continue
        yield from _compare_rules(chain, wanted, found)


def _compare_rules(chain: str, wanted: _Rules, found: _Rules) -> Iterator[Change]:
    """Yield at least one change: the lists differ, in content or in order."""
    start = _common(wanted, found)
    end = min(_common(wanted[::-1], found[::-1]), len(wanted) - start, len(found) - start)
    wanted, found = wanted[start : len(wanted) - end], found[start : len(found) - end]
    if len(wanted) * len(found) <= _MATCHER_LIMIT:
        yield from _compare_ordered(chain, start, wanted, found)
        return
    changes = tuple(_compare_unordered(chain, start, wanted, found))
    yield from changes
    if not changes:  # the same rules in another order: the first that stands in the wrong place will do
        yield Change(ChangeKind.EXTRA, chain, start + 1, found[0].text)
        yield Change(ChangeKind.MISSING, chain, start + 1, wanted[0].text)


def _common(wanted: _Rules, found: _Rules) -> int:
    """Return how many rules the two have in common before the first difference."""
    pairs = enumerate(zip(wanted, found, strict=False))
    return next((n for n, (w, f) in pairs if w.image != f.image), min(len(wanted), len(found)))


def _compare_ordered(chain: str, start: int, wanted: _Rules, found: _Rules) -> Iterator[Change]:
    matcher = SequenceMatcher(None, [rule.image for rule in found], [rule.image for rule in wanted], autojunk=False)
    for tag, found_from, found_to, wanted_from, wanted_to in matcher.get_opcodes():
        if tag == "equal":
            continue
        for position in range(found_from, found_to):
            yield Change(ChangeKind.EXTRA, chain, start + position + 1, found[position].text)
        for position in range(wanted_from, wanted_to):
            yield Change(ChangeKind.MISSING, chain, start + position + 1, wanted[position].text)


def _compare_unordered(chain: str, start: int, wanted: _Rules, found: _Rules) -> Iterator[Change]:
    left = Counter(rule.image for rule in wanted)
    left.subtract(rule.image for rule in found)
    for kind, rules, sign in ((ChangeKind.EXTRA, found, -1), (ChangeKind.MISSING, wanted, 1)):
        for position, rule in enumerate(rules, start + 1):
            if left[rule.image] * sign > 0:
                left[rule.image] -= sign
                yield Change(kind, chain, position, rule.text)
