"""The network namespace of a pod of the cluster: found by its processes, entered only where all proofs hold."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodeagent.compile import compile_policy
from nodeagent.errors import InputError, NodeagentError, RefusedError
from nodeagent.model import Policy
from nodeagent.netns.inhabited import PodNetns
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import Choice, Target
from tests.lab import Netns
from tests.lab.cgroups import Cgroup, TestCgroup

pytestmark = pytest.mark.kernel

RULES = compile_policy(Policy())
UID = "8d6a1f4e-0c52-4b7e-9f11-1d2c3b4a5e6f"
ADDRESS = ip_address("10.244.7.7")


@dataclass(frozen=True)
class Inhabited:
    """A pod's cgroup with a process in it that lives in `netns`; *target* is how the agent names it."""

    cgroup: Cgroup
    netns: Netns
    target: Target


@contextmanager
def sleeping(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that does nothing, behind *words*, for the length of the block."""
    with subprocess.Popen([*words, "sleep", "infinity"]) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def inhabited(pod: Netns) -> Iterator[Inhabited]:
    pod.ip(f"addr add {ADDRESS}/32 dev lo")
    with TestCgroup() as root:
        cgroup = root.child(f"pod{UID}")
        with sleeping(*pod.enter, "--") as process:
            pod.wait_for(process.pid)
            cgroup.child("0123456789ab").join(process.pid)
            yield Inhabited(cgroup, pod, Target(PodNetns(str(cgroup.path), UID), (ADDRESS,)))


def test_a_pod_is_programmed_where_its_processes_live(programmer: ChildProgrammer, inhabited: Inhabited) -> None:
    assert programmer.apply(inhabited.target, RULES, Choice.NFT).found.plan
    assert not programmer.observe(Target(inhabited.netns.path), RULES, Choice.NFT).plan
    assert programmer.watch(inhabited.target) == programmer.watch(Target(inhabited.netns.path))


def test_the_cookie_that_was_seen_is_taken_again(programmer: ChildProgrammer, inhabited: Inhabited) -> None:
    cookie = programmer.observe(inhabited.target, None, Choice.NFT).cookie
    assert programmer.apply(replace(inhabited.target, cookie=cookie), RULES, Choice.NFT).found.plan


def another_cookie(target: Target) -> Target:
    return replace(target, cookie=1)


def another_address(target: Target) -> Target:
    return replace(target, addresses=(ip_address("10.244.7.8"),))


def no_address(target: Target) -> Target:
    return replace(target, addresses=())


def another_pod(target: Target) -> Target:
    assert isinstance(target.netns, PodNetns)
    return replace(target, netns=replace(target.netns, name="another"))


def nobody(target: Target) -> Target:
    assert isinstance(target.netns, PodNetns)
    return replace(target, netns=replace(target.netns, cgroup=str(Path(target.netns.cgroup, "none"))))


@pytest.mark.fault(16)
@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (another_cookie, RefusedError, "another network namespace than the pod's was"),
        (another_address, RefusedError, "has no address 10.244.7.8"),
        (no_address, RefusedError, "no address yet that would prove it"),
        (another_pod, RefusedError, "its cgroup does not say so"),
        (nobody, InputError, "no process lives in"),
    ],
    ids=["another cookie", "another address", "no address", "a cgroup that names another pod", "nobody there"],
)
def test_what_is_not_proven_is_refused(
    programmer: ChildProgrammer, inhabited: Inhabited, wrong: object, error: type[NodeagentError], says: str
) -> None:
    assert callable(wrong)
    with pytest.raises(error, match=says):
        programmer.apply(wrong(inhabited.target), RULES, Choice.NFT)
    assert programmer.observe(Target(inhabited.netns.path), RULES, Choice.NFT).ruleset_id is None


@pytest.mark.fault(16)
def test_a_process_of_the_hosts_network_is_refused(programmer: ChildProgrammer, inhabited: Inhabited) -> None:
    """The one process of the pod that is there is in the host's namespace, whatever its cgroup says."""
    with TestCgroup() as root, sleeping() as process:
        cgroup = root.child(f"pod{UID}")
        cgroup.child("0123456789ab").join(process.pid)
        with pytest.raises(RefusedError, match="host's network namespace"):
            programmer.apply(replace(inhabited.target, netns=PodNetns(str(cgroup.path), UID)), RULES, Choice.NFT)


@pytest.mark.fault(16)
def test_a_decoy_in_another_pods_namespace_is_passed_over(programmer: ChildProgrammer, inhabited: Inhabited) -> None:
    """One of the pod's processes has entered another pod's namespace: the pod is found by the others, or not at all."""
    with Netns() as other, sleeping(*other.enter, "--") as decoy:
        other.ip("addr add 10.244.7.9/32 dev lo")
        other.wait_for(decoy.pid)
        inhabited.cgroup.child("00decoy").join(decoy.pid)
        assert programmer.apply(inhabited.target, RULES, Choice.NFT).found.plan
        assert not programmer.observe(Target(inhabited.netns.path), RULES, Choice.NFT).plan
        assert programmer.observe(Target(other.path), RULES, Choice.NFT).ruleset_id is None
        other.ip(f"addr add {ADDRESS}/32 dev lo")  # it even has the pod's address: the cookie tells
        cookie = programmer.observe(Target(inhabited.netns.path), None, Choice.NFT).cookie
        assert not programmer.apply(replace(inhabited.target, cookie=cookie), RULES, Choice.NFT).found.plan
        assert programmer.observe(Target(other.path), RULES, Choice.NFT).ruleset_id is None
