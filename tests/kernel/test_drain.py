"""Enrolling, editing and clearing a pod with open connections resets none of them."""

import time
from dataclasses import replace

import pytest

from nodeagent.compile import compile_policy
from nodeagent.compile.canonical import identify
from nodeagent.model import Hook, Policy
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import Choice, Cleared
from tests.cases.policies import POLICIES, ranges
from tests.kernel.conftest import Opener, Pod
from tests.lab import Dial, Topology

pytestmark = pytest.mark.kernel

OPEN = 20
EVERYTHING = Policy()
EXCLUDED = replace(EVERYTHING, exclude_ranges=ranges("203.0.113.0/24", "2001:db8::/32"))
TO = (Dial("203.0.113.10", 443), Dial("2001:db8::10", 443))


@pytest.mark.parametrize("tcp_loose", ["1", "0"])
def test_enrolling_a_pod_resets_none_of_its_connections(
    programmer: ChildProgrammer, lab: Topology, backend: Choice, open_to: Opener, tcp_loose: str
) -> None:
    lab.pod.set_sysctls({"net/netfilter/nf_conntrack_tcp_loose": tcp_loose})
    older = [open_to(lab.client, to) for to in TO for _ in range(OPEN)]
    lab.app.serve("tcp", 8080)
    inbound = [open_to(lab.outside_client, Dial("10.244.1.5", 8080)) for _ in range(OPEN)]
    Pod(programmer, lab.pod, backend).apply(EVERYTHING)
    assert {connection.echo() for connection in older} == {"world"}
    assert {connection.echo() for connection in inbound} == {"app-local"}
    assert {lab.client.connect(to).verdict for to in TO} == {"intercepted"}
    assert {connection.echo() for connection in older} == {"world"}


def test_an_edit_moves_new_connections_and_leaves_open_ones(
    programmer: ChildProgrammer, lab: Topology, backend: Choice, open_to: Opener
) -> None:
    pod = Pod(programmer, lab.pod, backend)
    pod.apply(EVERYTHING)
    through = [open_to(lab.client, to) for to in TO]
    pod.apply(EXCLUDED)
    past = [open_to(lab.client, to) for to in TO]
    assert {c.outcome.verdict for c in past} == {"bypassed"}
    pod.apply(EVERYTHING)
    assert {lab.client.connect(to).verdict for to in TO} == {"intercepted"}
    assert {c.echo() for c in through} == {"sidecar"}
    assert {c.echo() for c in past} == {"world"}


def test_clearing_drains_and_resets_nothing(
    programmer: ChildProgrammer, lab: Topology, backend: Choice, open_to: Opener
) -> None:
    pod = Pod(programmer, lab.pod, backend)
    pod.apply(EVERYTHING)
    through = [open_to(lab.client, to) for to in TO for _ in range(OPEN)]
    cleared = programmer.clear(pod.target, now=False)
    assert not cleared.removed
    assert cleared.intercepted == len(through)
    assert {lab.client.connect(to).verdict for to in TO} == {"bypassed"}
    assert {c.echo() for c in through} == {"sidecar"}
    for connection in through[1:]:
        connection.close()
    assert not wait_cleared(pod).removed
    assert through[0].echo() == "sidecar"
    through[0].close()
    direct = open_to(lab.client, TO[0])
    assert wait_cleared(pod, intercepted=0).removed
    assert direct.echo() == "world"
    assert not pod.differs(None)


def test_clearing_now_leaves_nothing_and_says_so(
    programmer: ChildProgrammer, lab: Topology, backend: Choice, open_to: Opener
) -> None:
    pod = Pod(programmer, lab.pod, backend)
    pod.apply(EVERYTHING)
    through = open_to(lab.client, TO[0])
    assert programmer.clear(pod.target, now=True).removed
    assert not pod.differs(None)
    with pytest.raises(ConnectionResetError):
        through.echo()


def test_a_pod_that_drains_can_be_programmed_again(
    programmer: ChildProgrammer, lab: Topology, backend: Choice, open_to: Opener
) -> None:
    pod = Pod(programmer, lab.pod, backend)
    pod.apply(EVERYTHING)
    through = open_to(lab.client, TO[0])
    programmer.clear(pod.target, now=False)
    assert pod.apply(EVERYTHING)
    assert through.echo() == "sidecar"
    assert lab.client.connect(TO[0]).verdict == "intercepted"


def test_a_strangers_translation_is_nothing_to_wait_for(
    programmer: ChildProgrammer, lab: Topology, backend: Choice, open_to: Opener
) -> None:
    pod = Pod(programmer, lab.pod, backend)
    lab.pod.nft(
        "table ip users { chain c { type nat hook output priority 0; ip daddr 192.0.2.1 dnat to 203.0.113.77; }; }"
    )
    pod.apply(replace(EVERYTHING, exclude_ranges=ranges("192.0.2.1/32")))
    theirs = open_to(lab.client, Dial("192.0.2.1", 9999))
    assert programmer.clear(pod.target, now=False).removed
    assert theirs.outcome.seen_by == theirs.echo() == "world"


def test_switching_dns_capture_moves_open_udp_sockets(
    programmer: ChildProgrammer, lab: Topology, backend: Choice
) -> None:
    pod = Pod(programmer, lab.pod, backend)
    pod.apply(EVERYTHING)
    query = Dial("10.96.0.10", 53, "udp", source=("10.244.1.5", 40053))
    assert lab.client.connect(query).verdict == "bypassed"
    pod.apply(POLICIES["dns_capture"])
    assert lab.client.connect(query).verdict == "intercepted"
    pod.apply(EVERYTHING)
    assert lab.client.connect(query).verdict == "bypassed"
    pod.apply(POLICIES["dns_capture"])
    assert lab.client.connect(query).verdict == "intercepted"
    assert programmer.clear(pod.target, now=False).removed
    assert lab.client.connect(query).verdict == "bypassed"


def test_the_proxys_queries_from_a_port_that_was_captured_reach_upstream(
    programmer: ChildProgrammer, lab: Topology, backend: Choice
) -> None:
    Pod(programmer, lab.pod, backend).apply(POLICIES["dns_capture"])
    for source in (("10.244.1.5", 40053), ("fd00:244:1::5", 40053)):
        resolver = "10.96.0.10" if "." in source[0] else "2001:db8::53"
        app = Dial(resolver, 53, "udp", source=source)
        proxy = replace(app, uid=1337, gid=1337)
        assert lab.client.connect(app).verdict == "intercepted"
        assert lab.client.connect(proxy).verdict == "bypassed"
        assert lab.client.connect(app).verdict == "intercepted"


def test_without_zones_such_a_query_would_come_back_to_the_proxy(
    programmer: ChildProgrammer, lab: Topology, backend: Choice
) -> None:
    """What the test above protects from: the same rules, less the zones."""
    complete = compile_policy(POLICIES["dns_capture"])
    kept = tuple((hook, rules) for hook, rules in complete.chains if hook in (Hook.KEEP, Hook.REDIRECT))
    Pod(programmer, lab.pod, backend).apply(identify(kept, ()))
    app = Dial("10.96.0.10", 53, "udp", source=("10.244.1.5", 40053))
    assert lab.client.connect(app).verdict == "intercepted"
    assert lab.client.connect(replace(app, uid=1337, gid=1337)).verdict == "intercepted"


def wait_cleared(pod: Pod, intercepted: int = 1) -> Cleared:
    """Clear until no more than *intercepted* connections are left: the kernel takes note of ends in its own time."""
    deadline = time.monotonic() + 30
    while (cleared := pod.programmer.clear(pod.target, now=False)).intercepted > intercepted:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return cleared
