"""Rules that somebody changes come back: at once where the kernel tells, else by the sweep."""

from collections.abc import Callable

import pytest

from nodeagent.programmer.seam import Choice
from tests.lab import Dial, Netns, Topology
from tests.lab.agent import Manifest, RunningAgent

pytestmark = pytest.mark.kernel

FAR = Dial("203.0.113.10", 443)
NEVER = "resync: {seconds: 3600}\n"
OFTEN = "resync: {seconds: 1}\n"


def nft(script: str) -> Callable[[Netns], None]:
    """Return a change by nft."""
    return lambda pod: pod.nft(script)


def legacy(*rules: str) -> Callable[[Netns], None]:
    """Return a change by iptables-legacy, in both families."""

    def change(pod: Netns) -> None:
        for command in ("iptables-legacy", "ip6tables-legacy"):
            for rule in rules:
                pod.run([command, "-t", "nat", *rule.split()])

    return change


def reorder(pod: Netns) -> None:
    """Move our chain's first rule to its end."""
    listing = pod.run(["nft", "-a", "list", "chain", "inet", "nodeagent", "intercept"])
    first = next(line for line in listing.splitlines() if "# handle" in line and "chain" not in line)
    rule, _, handle = first.strip().partition(" # handle ")
    pod.nft(
        f"delete rule inet nodeagent intercept handle {handle}\n"
        f"add rule inet nodeagent intercept {rule.partition(' comment ')[0]}"
    )


AT_ONCE = {
    "everything flushed": nft("flush ruleset"),
    "our table deleted": nft("delete table inet nodeagent"),
    "one chain flushed": nft("flush chain inet nodeagent intercept"),
    "a rule added ahead": nft("insert rule inet nodeagent intercept accept"),
    "our rules in another order": reorder,
    "the table asleep": nft("table inet nodeagent { flags dormant; }"),
}
BY_THE_SWEEP = {
    "our chain flushed": legacy("-F NODEAGENT_OUTPUT"),
    "the jump removed": legacy("-D OUTPUT 1"),
    "overtaken by a foreign rule": legacy("-I OUTPUT 1 -p tcp --dport 443 -j ACCEPT"),
    "a rule edited": legacy("-R NODEAGENT_OUTPUT 1 -p tcp -j ACCEPT"),
}


@pytest.mark.parametrize("change", AT_ONCE.values(), ids=AT_ONCE)
def test_nft_changes_are_heard_and_put_right(
    agent: RunningAgent, lab: Topology, change: Callable[[Netns], None]
) -> None:
    agent.configure(NEVER)
    agent.add(Manifest("web", lab.pod.path))
    agent.settle()
    before = lab.pod.run(["nft", "-s", "list", "ruleset"])
    change(lab.pod)
    agent.wait(lambda: agent.pod("web")["repairs"] == 1)
    assert agent.pod("web")["in_sync"]
    assert lab.pod.run(["nft", "-s", "list", "ruleset"]) == before
    assert lab.client.connect(FAR).verdict == "intercepted"


@pytest.mark.parametrize("change", BY_THE_SWEEP.values(), ids=BY_THE_SWEEP)
def test_legacy_changes_are_found_and_put_right(
    agent: RunningAgent, lab: Topology, change: Callable[[Netns], None]
) -> None:
    agent.configure(f"{OFTEN}backend: {Choice.LEGACY.value}\n")
    agent.add(Manifest("web", lab.pod.path))
    agent.settle()
    change(lab.pod)
    agent.wait(lambda: agent.pod("web")["repairs"] == 1)
    assert agent.pod("web")["in_sync"]
    assert lab.client.connect(FAR).verdict == "intercepted"
    assert agent.metrics()["nodeagent_drift_repairs_total"] == 1


def test_a_stranger_that_cannot_be_overtaken_is_told_and_not_fought(agent: RunningAgent, lab: Topology) -> None:
    agent.configure(OFTEN)
    agent.add(Manifest("web", lab.pod.path))
    agent.settle()
    ahead = "type nat hook output priority -150; tcp dport 443 dnat to 203.0.113.99:443;"
    lab.pod.nft(f"table ip first {{ chain c {{ {ahead} }}; }}")
    agent.wait(lambda: "first" in agent.pod("web")["detail"])
    assert not agent.pod("web")["in_sync"]
    assert agent.command("status").returncode == 1
    assert agent.metrics()['nodeagent_rules_in_sync{source_namespace="default",source_pod="web"}'] == 0
    lab.pod.nft("delete table ip first")
    agent.wait(lambda: agent.pod("web")["in_sync"])
    assert agent.pod("web")["repairs"] == 0


def test_a_change_in_a_pod_that_is_not_ours_is_nobodys_business(agent: RunningAgent, pod: Netns) -> None:
    agent.configure(NEVER)
    agent.add(Manifest("web", pod.path, {"intercept": "disabled"}))
    agent.wait(lambda: agent.pod("web").get("state") == "skipped")
    pod.nft("table ip theirs { chain c { type filter hook output priority 0; }; }")
    agent.add(Manifest("other", host_network=True))
    agent.wait(lambda: agent.pod("other").get("state") == "skipped")
    assert "theirs" in pod.run(["nft", "list", "ruleset"])
    assert not agent.events("cleared")
