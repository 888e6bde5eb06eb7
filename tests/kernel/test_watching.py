"""Sweeps, and what an agent that starts is told of pods that it finds in order: cheap, and never a lie."""

import os
import subprocess
from collections.abc import Callable

import pytest

from nodeagent.compile import compile_policy
from nodeagent.model import BackendName, Policy
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import Choice, Expected, Target
from tests.cases.policies import POLICIES
from tests.kernel.conftest import Pod
from tests.lab import Dial, Netns, Topology

pytestmark = pytest.mark.kernel

RULES = compile_policy(Policy())
PORT = 15001
Change = Callable[[Netns], object]


def expected(pod: Netns, backend: Choice) -> Expected:
    """Return that *pod* should hold the default rules."""
    return Expected(Target(pod.path), RULES.id, PORT, backend)


def nft(script: str) -> Change:
    """Return a change by nft."""
    return lambda pod: pod.nft(script)


def legacy(*arguments: str) -> Change:
    """Return a change by iptables."""
    return lambda pod: pod.run(["iptables-legacy", *arguments])


OF_NFT: dict[str, Change] = {
    "flushed": nft("flush ruleset"),
    "an element more": nft("insert rule inet nodeagent intercept accept"),
    "asleep": nft("table inet nodeagent { flags dormant; }"),
}
OF_LEGACY: dict[str, Change] = {
    "a rule of the same size": legacy("-t", "nat", "-R", "NODEAGENT_OUTPUT", "1", "-p", "tcp", "-j", "ACCEPT"),
    "flushed": legacy("-t", "nat", "-F", "NODEAGENT_OUTPUT"),
    "overtaken": legacy("-t", "nat", "-I", "OUTPUT", "1", "-p", "tcp", "--dport", "443", "-j", "ACCEPT"),
    "its tracking removed": legacy("-t", "mangle", "-F", "OUTPUT"),
}
OF_BOTH: dict[str, Change] = {
    "a redirect of another proxy by nft": nft(
        "table ip theirs { chain c { type nat hook output priority 0; tcp dport 80 redirect to 15001; }; }"
    ),
    "a redirect of another proxy by iptables": legacy("-t", "nat", "-N", "ISTIO_OUTPUT"),
}
CHANGES = [
    *(pytest.param(Choice.NFT, change, id=f"nft: {name}") for name, change in {**OF_NFT, **OF_BOTH}.items()),
    *(pytest.param(Choice.LEGACY, change, id=f"legacy: {name}") for name, change in {**OF_LEGACY, **OF_BOTH}.items()),
]


@pytest.mark.parametrize(("backend", "change"), CHANGES)
def test_a_sweep_that_remembers_a_good_one_notices(
    programmer: ChildProgrammer, pod: Netns, backend: Choice, change: Change
) -> None:
    Pod(programmer, pod, backend).apply(RULES)
    question = [expected(pod, backend)]
    assert [programmer.sweep(question) for _ in range(2)] == [[True], [True]]
    change(pod)
    assert [programmer.sweep(question) for _ in range(2)] == [[False], [False]]


def test_what_was_put_right_is_in_order_again(programmer: ChildProgrammer, pod: Netns, backend: Choice) -> None:
    mine, question = Pod(programmer, pod, backend), [expected(pod, backend)]
    mine.apply(RULES)
    assert programmer.sweep(question) == [True]
    mine.apply(POLICIES["everything_at_once"])
    assert programmer.sweep(question) == [False]
    mine.apply(RULES)
    assert programmer.sweep(question) == [True]


def test_traffic_and_strangers_who_harm_nobody_are_no_drift(
    programmer: ChildProgrammer, lab: Topology, backend: Choice
) -> None:
    Pod(programmer, lab.pod, backend).apply(RULES)
    question = [expected(lab.pod, backend)]
    for _ in range(2):
        assert programmer.sweep(question) == [True]
        assert lab.client.connect(Dial("203.0.113.10", 443)).verdict == "intercepted"  # counters move
        lab.pod.nft("table ip theirs { chain c { type filter hook output priority 0; }; }")
        lab.pod.run(["iptables-legacy", "-t", "filter", "-A", "INPUT", "-s", "198.18.0.1", "-j", "ACCEPT"])
    assert programmer.sweep(question) == [True]


def test_another_netns_at_the_same_path_is_not_taken_for_the_one_before(
    programmer: ChildProgrammer, tmp_path: object
) -> None:
    place = f"{tmp_path}/netns"
    subprocess.run(["touch", place], check=True)
    question = [Expected(Target(place), RULES.id, PORT, Choice.NFT)]
    with Netns() as first, Netns() as second:
        for netns in (first, second):  # the same path leads elsewhere
            subprocess.run(["mount", "--bind", netns.path, place], check=True)
            try:
                if netns is first:
                    programmer.apply(Target(place), RULES, Choice.NFT)
                    assert [programmer.sweep(question) for _ in range(2)] == [[True], [True]]
                else:
                    assert programmer.sweep(question) == [False]
            finally:
                subprocess.run(["umount", place], check=True)


def test_pods_in_order_are_recognised_with_all_that_an_agent_has_to_know(
    programmer: ChildProgrammer, lab: Topology, backend: Choice
) -> None:
    Pod(programmer, lab.pod, backend).apply(RULES)
    target = Target(lab.pod.path)
    with ChildProgrammer() as fresh:  # has encoded nothing yet
        [found] = fresh.recognise([expected(lab.pod, backend)], {RULES.id: RULES})
        assert found is not None
        assert (found.ruleset_id, found.backend) == (RULES.id, BackendName(backend.value))
        assert found.cookie == fresh.observe(target, RULES, backend).cookie
        assert found.number == fresh.watch(target)
        assert found.interfaces == fresh.interfaces(target)


def test_a_device_whose_name_is_no_text_is_a_device_like_any_other(programmer: ChildProgrammer, pod: Netns) -> None:
    """Else whoever may make one in his pod would keep it from being enrolled, and other pods from being recognised."""
    pod.run(["ip", "link", "add", os.fsdecode(b"x\xff\xfe"), "type", "veth", "peer", "name", "a\x1cb"])
    programmer.apply(Target(pod.path), RULES, Choice.NFT)
    assert set(programmer.interfaces(Target(pod.path)).values()) == {"lo", "a\x1cb", r"x\xff\xfe"}
    assert programmer.recognise([expected(pod, Choice.NFT)], {RULES.id: RULES})[0] is not None


def test_pods_out_of_order_are_not_recognised_and_change_nothing_for_the_others(
    programmer: ChildProgrammer, pod: Netns, backend: Choice
) -> None:
    with Netns() as bare, Netns() as other:
        for netns, rules in ((pod, RULES), (other, compile_policy(POLICIES["everything_at_once"]))):
            Pod(programmer, netns, backend).apply(rules)
        questions = [
            expected(bare, backend),
            expected(other, backend),
            Expected(Target("/proc/self/ns/nothing"), RULES.id, PORT, backend),
            Expected(Target(1), RULES.id, PORT, backend),
            expected(pod, backend),
        ]
        found = programmer.recognise(questions, {RULES.id: RULES})
    assert [answer is not None for answer in found] == [False, False, False, False, True]
