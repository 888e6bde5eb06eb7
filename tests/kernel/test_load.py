"""Thousands of connections while the rules change: none takes a path that neither policy allows, none is reset.

``NODEAGENT_LOAD_CONNECTIONS`` (default 10,000 a backend) makes it shorter on emulated kernels.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle

import pytest

from nodeagent.compile import compile_policy
from nodeagent.decide import decide
from nodeagent.model import Policy, RuleSet
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import Choice, Target
from tests.cases.policies import ports, ranges, scattered
from tests.kernel.conftest import connection_to
from tests.lab import LoadPlan, LoadReport, Topology

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(1200)]

CONNECTIONS = int(os.environ.get("NODEAGENT_LOAD_CONNECTIONS", "10000"))
CHANGES = CONNECTIONS * 3 // 100
TARGETS = (
    ("203.0.113.10", 443),
    ("198.51.100.20", 443),
    ("192.0.2.7", 443),
    ("2001:db8::10", 443),
    ("2001:db8:5::1", 443),
)

EVERYTHING = Policy(exclude_ranges=ranges("198.51.100.0/24", "2001:db8:5::/48"))
EDITED = replace(EVERYTHING, exclude_ranges=ranges("198.51.100.0/24", "192.0.2.0/24", "2001:db8:5::/48"))
MANY = replace(EVERYTHING, exclude_ranges=ranges("198.51.100.0/24", "2001:db8:5::/48", *scattered(300)))
INCLUDED = Policy(include_ranges=ranges("203.0.113.0/24", "2001:db8::/48", *scattered(300)))
CAPTURE = replace(EDITED, dns_capture=True, exclude_ports=ports(*range(1001, 1061, 2)))
ALTERNATIONS = {
    "plain-rules": (EVERYTHING, EDITED),
    "excluded-set-comes-and-goes": (EVERYTHING, MANY),
    "catch-all-or-included-set": (EVERYTHING, INCLUDED),
    "dns-zones-come-and-go": (EVERYTHING, CAPTURE),
    "same-set-other-content": (
        MANY,
        replace(MANY, exclude_ranges=ranges("198.51.100.0/24", "2001:db8:5::/48", *scattered(301))),
    ),
}


_ON_EVERY_KERNEL = ("catch-all-or-included-set", "dns-zones-come-and-go")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in _ON_EVERY_KERNEL else pytest.mark.exhaustive) for n in ALTERNATIONS],
)
def test_no_connection_takes_a_path_that_neither_policy_allows(
    name: str, programmer: ChildProgrammer, lab: Topology, backend: Choice
) -> None:
    policies = ALTERNATIONS[name]
    target = Target(lab.pod.path)
    first, *_ = rulesets = [compile_policy(policy) for policy in policies]
    programmer.apply(target, first, backend)
    per_alternation = CONNECTIONS // len(ALTERNATIONS) + 1
    with lab.load(LoadPlan(TARGETS, connections=per_alternation, in_flight=16)) as load:
        changes = sum(1 for _ in keep_changing(programmer, target, cycle(rulesets), backend, load.is_done))
        report = load.report()
    check(report, policies)
    assert len(report.records) == per_alternation
    assert changes >= CHANGES // len(ALTERNATIONS)


def keep_changing(
    programmer: ChildProgrammer,
    target: Target,
    rulesets: Iterator[RuleSet],
    backend: Choice,
    is_done: Callable[[], bool],
) -> Iterator[int]:
    """Apply one rule set after the other until the load is done; yield once a change."""
    minimum = CHANGES // len(ALTERNATIONS)
    for number, ruleset in enumerate(rulesets):
        if number > minimum and is_done():
            return
        applied = programmer.apply(target, ruleset, backend)
        assert not applied.remaining
        if applied.found.plan:
            yield number
        time.sleep(0.002)


def check(report: LoadReport, policies: tuple[Policy, ...]) -> None:
    """Hold each connection against both policies."""
    allowed = {
        target: {decide(policy, connection_to(*target)).verdict.value for policy in policies} for target in TARGETS
    }
    assert not report.broken()[:3]
    wrong = [r for r in report.records if r.outcome.verdict not in allowed[r.dialled]]
    assert not wrong[:3]
