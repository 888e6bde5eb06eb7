"""`decide()` and the kernel agree: random policies, real connections, both backends.

``NODEAGENT_PROPERTY_CASES`` sets how many cases each backend gets (default 600); the seed is
``NODEAGENT_PROPERTY_SEED`` (default 1).  Every case that fails can be made again from its number.
"""

import os

import pytest

from nodeagent.compile import compile_policy
from nodeagent.decide import decide
from nodeagent.model import RuleSet
from tests.cases.evaluate import redirect_port
from tests.cases.generate import NEIGHBOURS, Generated, coverage, sequence
from tests.cases.mutate import SWAPS, swapped
from tests.kernel.conftest import Pod, dial
from tests.lab import Outcome, Topology

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(3000)]

COUNT = int(os.environ.get("NODEAGENT_PROPERTY_CASES", "600"))
SEED = int(os.environ.get("NODEAGENT_PROPERTY_SEED", "1"))


def happened(outcome: Outcome) -> int | str | None:
    """Return the sidecar's port, None for a bypass (a closed port on the other side included), else what went wrong."""
    if outcome.verdict == "intercepted":
        return outcome.port
    return None if outcome.verdict == "bypassed" else outcome.verdict


def ask_the_kernel(pod: Pod, topology: Topology, ruleset: RuleSet, case: Generated) -> int | str | None:
    """Return what became of the case's connection under *ruleset*."""
    pod.apply(ruleset)
    return happened(topology.client.connect(dial(case.connection)))


def test_kernel_and_reference_semantics_agree(
    shared_pod: Pod, shared_lab: Topology, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = tuple(sequence(SEED, COUNT))
    wrong = []
    for number, case in enumerate(cases):
        expected = decide(case.policy, case.connection)
        kernel = ask_the_kernel(shared_pod, shared_lab, compile_policy(case.policy), case)
        if kernel != expected.port:
            wrong.append((number, case, expected, kernel))
    covered = coverage(cases)
    with capsys.disabled():
        print(f"\n{shared_pod.backend}: {COUNT} cases, seed {SEED}; neighbouring rows decided:", end=" ")
        print(", ".join(f"{a}/{b}: {covered[a, b]}" for a, b in NEIGHBOURS))
    assert not wrong[:3]
    assert min(covered[pair] for pair in NEIGHBOURS) >= 1


@pytest.mark.exhaustive
@pytest.mark.parametrize(("why", "other"), SWAPS)
def test_a_wrong_order_of_rules_shows_in_the_kernel(
    why: str, other: str, shared_pod: Pod, shared_lab: Topology
) -> None:
    """The property would fail: a case that the swapped rules decide differently is told apart by real sockets."""
    case, wrong = next(
        (case, wrong)
        for case in sequence(SEED, 6000)
        if redirects_differ(case, wrong := swapped(compile_policy(case.policy), why, other))
    )
    assert (
        ask_the_kernel(shared_pod, shared_lab, compile_policy(case.policy), case)
        == decide(case.policy, case.connection).port
    )
    assert ask_the_kernel(shared_pod, shared_lab, wrong, case) != decide(case.policy, case.connection).port


def redirects_differ(case: Generated, wrong: RuleSet) -> bool:
    """Say whether the wrong rules mean something else for this connection."""
    return redirect_port(wrong, case.connection) != decide(case.policy, case.connection).port
