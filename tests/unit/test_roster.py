"""Pods of two sources: whose they are, whether they are ours, and when they go."""

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodeagent.agent.enrolment import Enrolment
from nodeagent.agent.facts import Facts
from nodeagent.agent.pod import Pod, Source, Stage
from nodeagent.agent.policies import Policies
from nodeagent.agent.queue import Queue
from nodeagent.agent.roster import Roster
from nodeagent.agent.worker import Worker
from nodeagent.model import Container, Mode, PodKey, PodManifest, PodName, Snapshot
from nodeagent.netns.inhabited import PodNetns
from nodeagent.policy import Configuration, Resolution, Skip, read_configuration, resolve
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.runtime.cgroups import NETNS_PATH
from nodeagent.state import Store

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


@pytest.mark.parametrize(
    ("addresses", "listens", "ipv6", "says"),
    [
        pytest.param((), None, "intercept", "", id="nobody looked yet"),
        pytest.param((), {4}, "intercept", "", id="of a pod without known addresses IPv4 is asked for"),
        pytest.param(("10.0.0.1",), {6}, "intercept", "at port 15001: connections", id="nobody at all"),
        pytest.param(("10.0.0.1",), {4}, "intercept", "", id="a pod without IPv6 needs no listener there"),
        pytest.param(("10.0.0.1", "fd00::1"), {4, 6}, "intercept", "", id="both families"),
        pytest.param(("10.0.0.1", "fd00::1"), {4}, "intercept", "over IPv6: connections", id="IPv6 fails closed"),
        pytest.param(("10.0.0.1", "fd00::1"), {4}, "bypass", "", id="IPv6 is left alone"),
        pytest.param(("10.0.0.1", "fd00::1"), set(), "intercept", "at port 15001: connections", id="neither family"),
    ],
)
def test_a_sidecar_that_does_not_listen_is_told(
    addresses: tuple[str, ...], listens: set[int] | None, ipv6: str, says: str
) -> None:
    roster = Roster(Policies(read_configuration(f"proxy: {{ipv6: {ipv6}}}")), Queue[PodKey](lambda: 0.0), Facts())
    roster.update(
        Source.CLUSTER, said(replace(in_cluster(intercept="enabled"), pod_ips=tuple(map(ip_address, addresses))))
    )
    pod = only(roster)
    pod.listens = None if listens is None else frozenset(listens)
    assert pod.unanswered == "", "a pod that is not programmed yet refuses nothing"
    pod.stage, pod.in_sync = Stage.INTERCEPTED, True
    assert says in pod.unanswered
    assert bool(pod.unanswered) == bool(says)


def test_a_netns_has_one_pod() -> None:
    roster = make()
    roster.update(Source.CLUSTER, said(in_cluster(), PodManifest("other", uid="2")))
    web, other = sorted(roster, key=lambda pod: pod.key, reverse=True)
    web.cookie = other.cookie = 7
    assert roster.holder(web) is other
    other.retiring = True
    assert roster.holder(web) is None


HASH = "0123456789abcdef0123456789abcdef"
OLD, NEW = ip_address("10.0.0.1"), ip_address("10.0.0.2")


def test_whoever_names_a_pod_first_it_is_one_pod() -> None:
    for first, second in ((Source.CLUSTER, Source.RUNTIME), (Source.RUNTIME, Source.CLUSTER)):
        roster = make()
        roster.update(first, said(in_cluster(intercept="enabled")))
        found = only(roster)
        roster.update(second, said(in_cluster(intercept="enabled")))
        assert only(roster) is found
        assert found.source is Source.CLUSTER


def test_a_pod_goes_when_neither_names_it() -> None:
    roster = make()
    roster.update(Source.RUNTIME, said(in_cluster(intercept="enabled")))
    roster.update(Source.CLUSTER, said(in_cluster(intercept="enabled")))
    roster.update(Source.CLUSTER, said())
    assert only(roster).source is Source.RUNTIME
    roster.update(Source.RUNTIME, said())
    assert [pod.retiring for pod in roster] == [True]


def test_what_people_edit_is_believed_of_the_api_server_and_addresses_of_the_runtime() -> None:
    roster = make()
    runtimes = replace(in_cluster(intercept="enabled"), pod_ips=(NEW,), containers={"c1": "app"})
    apis = replace(in_cluster(intercept="enabled", excludeOutboundPorts="443"), pod_ips=(OLD,))
    roster.update(Source.RUNTIME, said(runtimes))
    roster.update(Source.CLUSTER, said(apis))
    found = only(roster)
    assert (found.manifest.annotations, found.manifest.pod_ips) == (apis.annotations, (NEW,))
    assert found.manifest.containers == {"c1": "app"}
    roster.update(Source.RUNTIME, replace(said(runtimes), is_current=False))
    assert found.manifest.pod_ips == (OLD,)


def test_a_static_pod_is_one_pod_though_its_mirror_has_another_uid() -> None:
    roster = make()
    roster.update(Source.RUNTIME, said(in_cluster(uid=HASH, intercept="enabled")))
    found = only(roster)
    mirror = replace(in_cluster(uid="1", intercept="enabled"), config_hash=HASH)
    roster.update(Source.CLUSTER, said(mirror))
    assert only(roster) is found
    assert (found.key.uid, found.manifest.uid) == (HASH, "1")
    roster.update(Source.CLUSTER, said())  # somebody deletes the mirror; the kubelet's pod runs on
    assert only(roster) is found


def test_a_static_pod_is_proven_by_its_address_alone(tmp_path: Path) -> None:
    """Whoever may make pods can make one that looks like its mirror, but only the kubelet gives that an address."""
    store = Store.open(tmp_path / "state")
    enrolment = Enrolment(Worker(ChildProgrammer), store, tmp_path)
    enrolment.kept = lambda: NETNS_PATH
    for name, config_hash, kept in (("1", "", NETNS_PATH), (HASH, HASH, "")):
        cgroup = tmp_path / f"kubepods/pod{name}"
        cgroup.mkdir(parents=True)
        roster = make()
        roster.update(Source.CLUSTER, said(replace(in_cluster(uid="1"), config_hash=config_hash)))
        assert enrolment.find_lodging(only(roster)) == PodNetns(str(cgroup), name, kept)
    store.close()


def test_a_pods_process_is_what_the_runtime_says(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "state")
    enrolment = Enrolment(Worker(ChildProgrammer), store, tmp_path)
    cgroup = tmp_path / "kubepods/pod1"
    cgroup.mkdir(parents=True)
    roster = make()
    for source, process in ((Source.CLUSTER, None), (Source.RUNTIME, 4711), (Source.CLUSTER, None)):
        roster.update(source, said(replace(in_cluster(uid="1"), process=process)))
    assert enrolment.find_lodging(only(roster)) == PodNetns(str(cgroup), "1", process=4711)
    store.close()


def test_a_former_agents_policy_holds_until_the_api_server_speaks() -> None:
    roster = make()
    policy = resolve({PORTS: "443"}).policy
    roster.remembered = {PodName("default", "web", "1"): policy}
    roster.update(Source.RUNTIME, said(in_cluster()))  # made without annotations, which came later
    assert only(roster).wanted.policy == policy
    assert only(roster).wanted.ruleset is not None
    roster.update(Source.CLUSTER, said(in_cluster()))
    assert only(roster).wanted.skipped is Skip.NOT_OPTED_IN


def test_a_sidecar_that_the_runtime_starts_beside_another_container_opts_in() -> None:
    roster = make()
    alone = replace(in_cluster(), running=(Container("istio-proxy", 1337, 1337),))
    roster.update(Source.RUNTIME, said(alone))
    assert only(roster).wanted.skipped is Skip.NOT_OPTED_IN
    roster.update(Source.RUNTIME, said(replace(alone, running=(*alone.running, Container("app")))))
    assert only(roster).wanted.skipped is None
