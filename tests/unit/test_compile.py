"""The compiled rules mean what ``decide()`` says."""

from dataclasses import replace

import pytest

from nodeagent.compile import compile_policy, only_family
from nodeagent.compile.canonical import from_json, to_json
from nodeagent.decide import decide
from nodeagent.errors import InputError
from nodeagent.model import Family, Hook, Policy, Rule
from tests.cases.evaluate import redirect_port
from tests.cases.generate import NEIGHBOURS, coverage, matching_rows, sequence
from tests.cases.mutate import SWAPS, swapped
from tests.cases.policies import POLICIES, ports, ranges

CASES = tuple(sequence(seed=1, count=6000))


def test_rules_and_reference_semantics_agree_on_every_border() -> None:
    wrong = [
        c for c in CASES if redirect_port(compile_policy(c.policy), c.connection) != decide(c.policy, c.connection).port
    ]
    assert not wrong[:3]


def test_generated_cases_cover_every_pair_of_rows() -> None:
    covered = coverage(CASES)
    print("cases that a pair of rows decides:", covered)
    assert min(covered[pair] for pair in NEIGHBOURS) >= 30
    assert min(covered.values()) >= 5


def test_decide_gives_the_first_matching_row() -> None:
    for case in CASES:
        row = int(decide(case.policy, case.connection).rule.split(":")[0])
        assert row == min(matching_rows(case.policy, case.connection))


@pytest.mark.parametrize(("why", "other"), SWAPS)
def test_a_wrong_order_of_rules_is_noticed(why: str, other: str) -> None:
    assert any(
        redirect_port(swapped(compile_policy(c.policy), why, other), c.connection)
        != decide(c.policy, c.connection).port
        for c in CASES
    )


@pytest.mark.parametrize("name", POLICIES)
def test_canonical_form_round_trips(name: str) -> None:
    ruleset = compile_policy(POLICIES[name])
    assert from_json(to_json(ruleset)) == ruleset


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"chains":[],"sets":[]} ',
        b"\xff",
        b'{"chains":[["redirect",[[{},["redirect"],"x"]]]],"sets":[]}',
    ],
)
def test_what_is_not_canonical_is_refused(text: bytes) -> None:
    with pytest.raises(InputError, match="canonical"):
        from_json(text)


def test_rule_sets_of_different_policies_have_different_ids() -> None:
    assert len({compile_policy(policy).id for policy in POLICIES.values()}) == len(POLICIES)


def test_an_id_depends_on_what_the_ranges_mean_not_on_how_they_are_written() -> None:
    nested = Policy(exclude_ranges=ranges("10.0.0.0/8", "10.1.0.0/16"), exclude_ports=ports(80, 81))
    plain = Policy(exclude_ranges=ranges("10.0.0.0/8"), exclude_ports=ports((80, 81)))
    assert compile_policy(nested).id == compile_policy(plain).id


def test_connection_tracking_is_kept_whatever_the_policy() -> None:
    for policy in POLICIES.values():
        (rule,) = compile_policy(policy).chain(Hook.KEEP)
        assert isinstance(rule, Rule)
        assert rule.match.invalid


def test_a_capture_that_an_exclusion_makes_void_needs_no_zones() -> None:
    policy = replace(POLICIES["dns_capture"], exclude_ports=ports(53))
    assert [hook for hook, _ in compile_policy(policy).chains] == [Hook.KEEP, Hook.REDIRECT]


def test_one_family_of_a_rule_set_holds_nothing_of_the_other() -> None:
    shown = only_family(compile_policy(POLICIES["everything_at_once"]), Family.V6)
    families = {rule.match.family for _, rules in shown.chains for rule in rules} | {s.family for s in shown.sets}
    assert families <= {None, Family.V6}
