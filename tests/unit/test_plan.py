"""An empty plan means converged, and nothing else does."""

from collections.abc import Iterable

from nodeagent.compile import compile_policy
from nodeagent.model import BackendName, ChangeKind, KernelRule, KernelState, Program, Reading
from nodeagent.plan import make_plan
from tests.cases.policies import POLICIES

NFT = BackendName.NFT


def state(**chains: str) -> KernelState:
    """Return a state of one-letter rules: ``state(a="xyz")`` has three rules in chain a."""
    return KernelState(NFT, {name: tuple(KernelRule(c.encode(), c) for c in rules) for name, rules in chains.items()})


def changes(wanted: KernelState | None, found: KernelState | None) -> list[tuple[str, str, int, str]]:
    """Return the changes of the plan between two states."""
    program = Program("id", NFT, wanted, b"") if wanted else None
    plan = make_plan(program, Reading(found), NFT)
    return [(c.kind.value, c.chain, c.position, c.text) for c in plan.changes]


def test_equal_states_need_nothing() -> None:
    assert changes(state(a="xyz", b=""), state(a="xyz", b="")) == []


def test_nothing_wanted_and_nothing_found_needs_nothing() -> None:
    assert changes(None, None) == []


def test_a_deleted_rule_is_missing_at_its_place() -> None:
    assert changes(state(a="xyz"), state(a="xz")) == [("missing", "a", 2, "y")]


def test_a_strangers_rule_among_ours_is_extra() -> None:
    assert changes(state(a="xy"), state(a="x!y")) == [("extra", "a", 2, "!")]


def test_order_counts() -> None:
    assert {kind for kind, *_ in changes(state(a="xy"), state(a="yx"))} == {"missing", "extra"}


def test_an_empty_chain_that_is_gone_counts() -> None:
    assert changes(state(a="x", b=""), state(a="x")) == [("missing", "b", 0, "the empty chain")]


def test_an_unknown_chain_of_ours_counts() -> None:
    assert changes(state(a="x"), state(a="x", b="")) == [("extra", "b", 0, "the empty chain")]


def test_all_of_ours_is_extra_where_nothing_is_wanted() -> None:
    assert [kind for kind, *_ in changes(None, state(a="xy"))] == ["extra", "extra"]


def test_a_stranger_ahead_of_us_is_not_converged() -> None:
    plan = make_plan(Program("id", NFT, state(a="x"), b""), Reading(state(a="x"), ahead=("-j ACCEPT",)), NFT)
    assert [(c.kind, c.text) for c in plan.changes] == [(ChangeKind.AHEAD, "-j ACCEPT")]


def test_rules_left_in_the_other_backend_are_extra() -> None:
    plan = make_plan(Program("id", NFT, state(a="x"), b""), Reading(state(a="x")), NFT, leftover=state(b="z"))
    assert [(c.kind, c.chain) for c in plan.changes] == [(ChangeKind.EXTRA, "b")]


def many(numbers: Iterable[int]) -> KernelState:
    """Return a state of one long chain."""
    return KernelState(NFT, {"a": tuple(KernelRule(str(n).encode(), str(n)) for n in numbers)})


def test_a_rule_moved_in_a_long_chain_is_out_of_order() -> None:
    moved = [1099, *range(1099)]
    assert {kind for kind, *_ in changes(many(range(1100)), many(moved))} == {"extra", "missing"}


def test_a_long_chain_turned_round_is_out_of_order() -> None:
    assert changes(many(range(5000)), many(range(4999, -1, -1))) == [
        ("extra", "a", 1, "4999"),
        ("missing", "a", 1, "0"),
    ]


def test_one_of_many_that_is_gone_is_found() -> None:
    assert changes(many(range(100_000)), many(n for n in range(100_000) if n != 500)) == [("missing", "a", 501, "500")]


def test_many_differences_in_long_lists_are_all_told() -> None:
    found = changes(many(range(5000)), many(range(2500, 7500)))
    assert len([c for c in found if c[0] == "missing"]) == 2500
    assert len([c for c in found if c[0] == "extra"]) == 2500


def test_compiling_is_deterministic() -> None:
    for policy in POLICIES.values():
        assert compile_policy(policy) == compile_policy(policy)
