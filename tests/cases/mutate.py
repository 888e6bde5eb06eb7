"""Rule sets in a wrong order, made on purpose: what the property tests must notice."""

from itertools import combinations

from nodeagent.compile.canonical import identify
from nodeagent.model import Hook, RuleSet

ORDER = ("excluded_interface", "exempt_owner", "excluded_port", "excluded_cidr", "dns_capture", "loopback", "included")
_EXCLUSIONS = ORDER[:4]  # their order gives the reason, never the verdict: all of them bypass
_VOID = ("excluded_port", "dns_capture")  # an excluded port 53 leaves no capture rule to be overtaken

SWAPS = tuple(p for p in combinations(ORDER, 2) if p != _VOID and not set(p).issubset(_EXCLUSIONS))
"""Pairs of kinds of rules whose order decides some verdict."""


def swapped(ruleset: RuleSet, why: str, other: str) -> RuleSet:
    """Return *ruleset* with the rules of one kind moved behind those of the other, if it has both."""
    rules = list(ruleset.chain(Hook.REDIRECT))
    first = [rule for rule in rules if rule.why == why]
    last = max((n for n, rule in enumerate(rules) if rule.why == other), default=-1)
    if not first or last < rules.index(first[-1]):
        return ruleset
    moved = [rule for rule in rules[: last + 1] if rule.why != why] + first + rules[last + 1 :]
    chains = tuple((h, tuple(moved) if h is Hook.REDIRECT else rs) for h, rs in ruleset.chains)
    return identify(chains, ruleset.sets)
