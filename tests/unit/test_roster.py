"""Pods of two sources: whose they are, whether they are ours, and when they go."""

from nodeagent.agent.facts import Facts
from nodeagent.agent.pod import Pod, Source
from nodeagent.agent.policies import Policies
from nodeagent.agent.queue import Queue
from nodeagent.agent.roster import Roster
from nodeagent.model import Mode, PodKey, PodManifest, Snapshot
from nodeagent.policy import Configuration, Resolution, Skip

PORTS = "nodeagent.io/excludeOutboundPorts"
NETNS = "/run/netns/web"


def make() -> Roster:
    return Roster(Policies(Configuration()), Queue[PodKey](lambda: 0.0), Facts())


def said(*pods: PodManifest) -> Snapshot:
    return Snapshot({PodKey.of(pod): pod for pod in pods})


def only(roster: Roster) -> Pod:
    (pod,) = [pod for pod in roster if not pod.retiring]
    return pod


def in_cluster(uid: str = "1", **annotations: str) -> PodManifest:
    return PodManifest("web", uid=uid, annotations={f"nodeagent.io/{key}": text for key, text in annotations.items()})


def test_a_pod_that_both_name_is_the_directorys() -> None:
    roster = make()
    roster.update(Source.CLUSTER, said(in_cluster()))
    assert only(roster).source is Source.CLUSTER
    roster.update(Source.DIRECTORY, said(PodManifest("web", netns=NETNS)))
    assert (only(roster).source, only(roster).key.netns) == (Source.DIRECTORY, NETNS)
    roster.update(Source.DIRECTORY, said())
    assert only(roster).source is Source.CLUSTER


def test_another_pod_of_the_same_name_is_the_clusters() -> None:
    roster = make()
    roster.update(Source.DIRECTORY, said(PodManifest("web", uid="1", netns=NETNS)))
    roster.update(Source.CLUSTER, said(in_cluster(uid="2")))
    assert {pod.source for pod in roster} == {Source.DIRECTORY, Source.CLUSTER}


def test_a_source_that_names_a_pod_no_longer_takes_none_of_the_others_pods() -> None:
    roster = make()
    roster.update(Source.DIRECTORY, said(PodManifest("web", netns=NETNS)))
    roster.update(Source.CLUSTER, said(PodManifest("other", uid="2")))
    roster.update(Source.CLUSTER, said())
    assert [pod.key.name for pod in roster if pod.retiring] == ["other"]


def test_a_pod_of_the_cluster_has_to_opt_in() -> None:
    roster = make()
    roster.update(Source.CLUSTER, said(in_cluster()))
    assert only(roster).wanted.skipped is Skip.NOT_OPTED_IN
    assert only(roster).wanted.policy.mode is Mode.DISABLED
    roster.update(Source.CLUSTER, said(in_cluster(intercept="enabled")))
    assert only(roster).wanted.skipped is None
    assert only(roster).wanted.ruleset is not None


def test_a_pod_may_opt_out_whatever_else_is_refused() -> None:
    roster = make()
    roster.update(Source.CLUSTER, said(in_cluster(intercept="enabled")))
    roster.update(Source.CLUSTER, said(in_cluster(intercept="disabled", excludeOutboundPorts="99999")))
    assert only(roster).wanted.skipped is Skip.DISABLED
    assert only(roster).wanted.ruleset is None


def test_what_is_refused_is_told_though_the_last_good_annotations_hold() -> None:
    roster, told = make(), list[Resolution]()
    roster.judged = lambda _pod, resolution: told.append(resolution)
    roster.update(Source.CLUSTER, said(in_cluster(intercept="enabled", excludeOutboundPorts="443")))
    roster.update(Source.CLUSTER, said(in_cluster(intercept="enabled", excludeOutboundPorts="99999")))
    assert [rejection.key for rejection in told[-1].rejected] == [PORTS]
    assert [str(port) for port in only(roster).wanted.policy.exclude_ports] == ["443"]


def test_a_netns_has_one_pod() -> None:
    roster = make()
    roster.update(Source.CLUSTER, said(in_cluster(), PodManifest("other", uid="2")))
    web, other = sorted(roster, key=lambda pod: pod.key, reverse=True)
    web.cookie = other.cookie = 7
    assert roster.holder(web) is other
    other.retiring = True
    assert roster.holder(web) is None
