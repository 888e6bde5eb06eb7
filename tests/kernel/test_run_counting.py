"""``nodeagent run`` counts: what it says left the pod, and why, over edits, drift and its own end."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import pytest

from tests.kernel.conftest import Opener
from tests.lab import Cgroup, Dial, PodCgroups, Topology, istio_like
from tests.lab.agent import Manifest, RunningAgent

pytestmark = pytest.mark.kernel

FAR = Dial("203.0.113.10", 443)
OTHER = Dial("203.0.113.10", 444)
UID = "0b9d6f3e-uid"


@dataclass(frozen=True)
class Node:
    """A pod with its sidecar, in cgroups as a kubelet makes them, and its manifest."""

    lab: Topology
    manifest: Manifest

    def edited(self, **annotations: str) -> Manifest:
        """Return the manifest with these annotations."""
        return replace(self.manifest, annotations=annotations)

    def dial(self, to: Dial, times: int = 1) -> set[str]:
        """Dial so often; return the verdicts as the other end saw them."""
        return {self.lab.client.connect(to).verdict for _ in range(times)}


@pytest.fixture
def node(kubepods: Cgroup) -> Iterator[Node]:
    """Make a counted pod."""
    cgroups = PodCgroups(kubepods.child("kubepods"), UID)
    with Topology(cgroups=cgroups) as lab:
        containers = {"app": "app", "sidecar": "istio-proxy"}
        yield Node(lab, Manifest("web", lab.pod.path, uid=UID, containers=containers))


def connections(agent: RunningAgent) -> dict[tuple[str, str], int]:
    """Return the connections of the app and the sidecar, by verdict and reason."""
    found: dict[tuple[str, str], int] = {}
    for flow in agent.flows():
        key = flow["verdict"], flow["reason"]
        found[key] = found.get(key, 0) + flow["connections"]
    return {key: count for key, count in found.items() if count}


def is_repaired(agent: RunningAgent, times: int) -> bool:
    """Say whether the pod's rules were repaired so often."""
    return bool(agent.pod("web")["repairs"] >= times)


def test_each_destination_has_its_verdict_and_reason(agent: RunningAgent, node: Node) -> None:
    agent.configure("ranges: {partner: [198.51.100.0/24]}\n")
    agent.add(node.edited(excludeOutboundIPRanges="198.51.100.0/24", excludeOutboundPorts="3306"))
    agent.settle()
    assert agent.pod("web")["counted_by"] == "cgroup"
    assert agent.pod("web")["containers"] == ["app", "istio-proxy"]
    node.dial(FAR, 3)
    node.dial(Dial("198.51.100.7", 443), 2)
    node.dial(Dial("2001:db8::10", 3306))
    node.dial(Dial("203.0.113.10", 443, "udp"))
    assert connections(agent) == {
        ("intercepted", "included"): 3,
        ("bypassed", "excluded_cidr"): 2,
        ("bypassed", "excluded_port"): 1,
        ("bypassed", "non_tcp"): 1,
    }
    [partner] = agent.flows(destination="partner")
    assert agent.flows(pod="default/web", address="198.51.100.7", protocol="TCP") == [partner]
    assert agent.flows(pod="elsewhere/web") == []
    [v6] = agent.flows(address="2001:DB8:0::10")
    assert v6["reason"] == "excluded_port"
    assert (partner["container"], partner["address"], partner["port"]) == ("app", "198.51.100.7", 443)
    assert agent.command("status").returncode == 0


def test_a_live_edit_raises_no_false_alarm(agent: RunningAgent, node: Node) -> None:
    agent.add(node.manifest)
    epoch = agent.settle()
    for _ in range(3):
        for manifest in (node.edited(excludeOutboundPorts="443"), node.manifest):
            agent.add(manifest)
            while not (agent.is_settled() and agent.pod("web")["epoch"] > epoch):
                node.dial(FAR)
            epoch = agent.pod("web")["epoch"]
            node.dial(FAR)
    assert set(connections(agent)) == {("intercepted", "included"), ("bypassed", "excluded_port")}
    assert agent.command("status").returncode == 0


def test_what_began_before_the_rules_says_so(agent: RunningAgent, node: Node, open_to: Opener) -> None:
    agent.add(node.edited(intercept="observe"))
    agent.wait(lambda: agent.pod("web").get("counted_by"))
    open_to(node.lab.client, FAR)
    assert connections(agent) == {("bypassed", "observed"): 1}


def test_what_slips_through_is_rules_missing_and_the_rules_come_back(agent: RunningAgent, node: Node) -> None:
    agent.add(node.manifest)
    agent.settle()
    repairs = 0
    while ("bypassed", "rules_missing") not in connections(agent):
        node.lab.pod.run(["nft", "flush", "ruleset"])
        node.dial(FAR)
        repairs += 1
        agent.wait(partial(is_repaired, agent, repairs))
        assert node.dial(FAR) == {"intercepted"}
    assert set(connections(agent)) == {("intercepted", "included"), ("bypassed", "rules_missing")}
    assert agent.command("status").returncode == 1
    leaks = agent.command("flows", "--leaks").stdout
    assert "rules_missing" in leaks
    assert "included" not in leaks


def test_observed_pods_of_another_tool_are_judged_by_their_own_annotations(agent: RunningAgent, node: Node) -> None:
    istio_like(node.lab.pod, "nft")
    agent.add(node.edited(**{"traffic.sidecar.istio.io/excludeOutboundPorts": "444"}))
    agent.wait(lambda: agent.pod("web").get("state") == "observed")
    node.dial(FAR)
    node.dial(Dial("203.0.113.10", 53, "udp"))
    assert connections(agent) == {("intercepted", "included"): 1, ("bypassed", "non_tcp"): 1}
    node.lab.pod.run(["iptables-nft", "-t", "nat", "-I", "OUTPUT", "1", "-p", "tcp", "-j", "ACCEPT"])
    node.dial(FAR)
    node.dial(OTHER)
    assert connections(agent)["bypassed", "rules_missing"] == 1
    assert connections(agent)["bypassed", "excluded_port"] == 1


POLICIES: tuple[tuple[dict[str, str], dict[Dial, tuple[str, str]]], ...] = (
    (
        {"excludeInterfaces": "net1"},
        {Dial("172.16.9.9", 443): ("bypassed", "excluded_interface"), FAR: ("intercepted", "included")},
    ),
    (
        {"includeOutboundIPRanges": "198.51.100.0/24"},
        {OTHER: ("bypassed", "not_included"), Dial("198.51.100.7", 443): ("intercepted", "included")},
    ),
    (
        {"dnsCapture": "true"},
        {
            Dial("10.96.0.10", 53, "udp"): ("intercepted", "dns_capture"),
            Dial("10.96.0.10", 54, "udp"): ("bypassed", "non_tcp"),
            Dial("2001:db8::10", 443): ("bypassed", "ipv6_unmanaged"),
            Dial("203.0.113.10", 445): ("intercepted", "included"),
        },
    ),
)
"""Annotations, who is dialled under them, and what the ledger must say; the configuration leaves IPv6 alone."""


def booked(agent: RunningAgent, to: Dial) -> dict[tuple[str, str], int]:
    """Return the connections to a destination, by verdict and reason."""
    flows = agent.flows(address=to.dst, protocol=to.proto)
    return {(f["verdict"], f["reason"]): f["connections"] for f in flows if f["port"] == to.port and f["packets"]}


def test_each_policy_has_its_reasons(agent: RunningAgent, node: Node) -> None:
    agent.configure("proxy: {ipv6: bypass}\n")
    agent.wait(lambda: agent.ask("/api/v1/config")["settings"]["proxy"]["ipv6"] == "bypass")
    epoch = 0
    for annotations, dialled in POLICIES:
        agent.add(node.edited(**annotations))
        agent.wait(lambda: agent.pod("web").get("counted_by"))
        epoch = agent.settle(after=epoch)
        for to, expected in dialled.items():
            node.dial(to)
            assert booked(agent, to) == {expected: 1}, (annotations, to)


def test_what_is_older_than_the_rules_and_what_conntrack_forgot(
    agent: RunningAgent, node: Node, open_to: Opener
) -> None:
    older = open_to(node.lab.client, FAR)
    with subprocess.Popen([*node.lab.pod.enter, "--", "nft", "-i"], stdin=subprocess.PIPE) as owner:
        assert owner.stdin
        owner.stdin.write(b"add table inet nodeagent { flags owner; }\n")  # nobody else may write there
        owner.stdin.flush()
        agent.wait(lambda: "nodeagent" in node.lab.pod.run(["nft", "list", "ruleset"]))
        agent.add(node.manifest)
        agent.wait(lambda: agent.pod("web").get("counted_by"))
        assert node.dial(OTHER) == {"bypassed"}
        assert older.echo() == "world"
        owner.kill()
    agent.settle()
    assert booked(agent, OTHER) == {("bypassed", "before_rules"): 1}
    assert booked(agent, FAR) == {("bypassed", "preexisting"): 0}
    third = Dial("203.0.113.20", 443)
    forgotten = open_to(node.lab.client, third)
    assert booked(agent, third) == {("intercepted", "included"): 1}
    node.lab.pod.set_sysctls({"net/netfilter/nf_conntrack_tcp_timeout_established": "0"})
    for _ in range(2):  # the first leaves an entry that is gone when the second comes, if it came so far
        with suppress(OSError):
            forgotten.echo()
    assert booked(agent, third) == {("intercepted", "included"): 1, ("bypassed", "conntrack_lost"): 0}


def test_a_pod_that_is_counted_again_waits_for_its_slots_and_for_nobody_else(agent: RunningAgent, node: Node) -> None:
    agent.add(node.manifest)
    agent.settle()
    node.dial(FAR)
    for _ in range(3):
        agent.add(node.edited(intercept="disabled"))
        agent.wait(lambda: agent.pod("web").get("state") == "skipped")
        agent.add(node.manifest)
        agent.wait(lambda: agent.pod("web")["counted_by"] == "cgroup")
        agent.settle()
    assert node.dial(FAR) == {"intercepted"}
    assert agent.counts()
    assert not agent.events("counting is unavailable")
    assert connections(agent) == {("intercepted", "included"): 2}


def test_an_impostor_is_told_from_the_sidecar(agent: RunningAgent, node: Node) -> None:
    agent.add(node.manifest)
    agent.settle()
    node.dial(replace(FAR, uid=1337, gid=1337))
    assert connections(agent) == {("bypassed", "impersonated_proxy"): 1}


def test_a_container_that_starts_later_is_named(agent: RunningAgent, node: Node, kubepods: Cgroup) -> None:
    agent.add(node.manifest)
    agent.settle()
    late = kubepods.child("kubepods").child(f"pod{UID}").child("late")
    agent.wait(lambda: "late" in agent.pod("web")["containers"])
    agent.add(replace(node.manifest, containers={**node.manifest.containers, "late": "debugger"}))
    agent.wait(lambda: "debugger" in agent.pod("web")["containers"])
    node.dial(replace(FAR, cgroup=str(late.path)))
    assert [flow["container"] for flow in agent.flows(verdict="intercepted")] == ["debugger"]


def test_a_restart_changes_no_number(agent: RunningAgent, node: Node) -> None:
    agent.add(node.edited(excludeOutboundPorts="444"))
    agent.settle()
    node.dial(FAR, 2)
    node.dial(OTHER)
    before, epoch = agent.flows(), agent.pod("web")["epoch"]
    assert agent.stop() == 0
    assert node.dial(FAR) == {"intercepted"}
    assert node.dial(OTHER) == {"bypassed"}
    agent.start()
    agent.settle()
    agent.wait(lambda: agent.pod("web")["counted_by"])
    assert agent.pod("web")["epoch"] == epoch
    after = agent.flows()
    assert [flow["connections"] - old["connections"] for flow, old in zip(after, before, strict=True)] == [1, 1]
    assert [flow["reason"] for flow in after] == [flow["reason"] for flow in before]


def test_explain_shows_what_was_seen(agent: RunningAgent, node: Node) -> None:
    agent.add(node.edited(excludeOutboundPorts="444"))
    agent.settle()
    node.dial(OTHER)
    done = agent.command("explain", "--pod", "default/web", "--to", "203.0.113.10:444")
    assert done.returncode == 0, done.stderr
    assert "excluded_port" in done.stdout
    assert "seen so far: bypassed (excluded_port): 1 connections" in done.stdout
