"""The programmer's promises that both backends share."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from fcntl import LOCK_EX, flock
from pathlib import Path
from socket import AF_INET, SOCK_STREAM

import pytest

from nodeagent.compile import compile_policy
from nodeagent.errors import BusyError, KernelError, RefusedError
from nodeagent.model import BackendName, ChangeKind, Policy
from nodeagent.programmer.memory import MemoryProgrammer, Namespace
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import Choice, Programmer, Target
from tests.cases.policies import POLICIES, ranges
from tests.conftest import GOLDENS
from tests.kernel.conftest import EVERY_POLICY, Opener, Pod
from tests.lab import Backend, Dial, Netns, Topology, istio_like, legacy_save, nft_save, strangers_legacy, strangers_nft

pytestmark = pytest.mark.kernel

INTERESTING = (
    "default",
    "everything_at_once",
    "dns_capture_with_exclusions",
    "exclude_101_ranges_of_each_family",
    "include_nothing",
)


@pytest.mark.parametrize("name", INTERESTING)
def test_the_second_apply_changes_nothing(name: str, programmer: ChildProgrammer, pod: Netns, backend: Choice) -> None:
    mine = Pod(programmer, pod, backend)
    assert mine.apply(POLICIES[name])
    before = legacy_save(pod), nft_save(pod)
    assert not mine.differs(POLICIES[name])
    assert not mine.apply(POLICIES[name])
    assert (legacy_save(pod), nft_save(pod)) == before


def test_rules_do_not_depend_on_the_way_there(programmer: ChildProgrammer, backend: Choice) -> None:
    saved = []
    for way in (INTERESTING, tuple(reversed(INTERESTING[1:])) + INTERESTING[:1], INTERESTING[:1]):
        with Netns() as pod:
            for name in (*way, "default"):
                Pod(programmer, pod, backend).apply(POLICIES[name])
            opened = {
                table: text for table, text in legacy_save(pod).items() if "-A " in text
            }  # raw, once opened, stays
            saved.append((opened, nft_save(pod)))
    assert all(one == saved[0] for one in saved)


def test_a_rule_set_can_be_told_from_the_kernel(programmer: ChildProgrammer, pod: Netns, backend: Choice) -> None:
    mine = Pod(programmer, pod, backend)
    for name in INTERESTING:
        mine.apply(POLICIES[name])
        found = programmer.observe(mine.target, None, backend)
        assert found.ruleset_id == compile_policy(POLICIES[name]).id


def test_clearing_leaves_the_namespace_as_it_was(programmer: ChildProgrammer, pod: Netns, backend: Choice) -> None:
    strangers_legacy(pod)
    strangers_nft(pod)
    before = legacy_save(pod), nft_save(pod)
    mine = Pod(programmer, pod, backend)
    for name in INTERESTING:
        mine.apply(POLICIES[name])
    assert programmer.clear(mine.target, now=False).removed
    assert (legacy_save(pod), nft_save(pod)) == before
    assert programmer.clear(mine.target, now=False).removed


def test_looking_changes_nothing(programmer: ChildProgrammer, pod: Netns, backend: Choice) -> None:
    tables = pod.run(["cat", "/proc/self/net/ip_tables_names"]) if backend is Choice.LEGACY else ""
    assert Pod(programmer, pod, backend).differs(Policy())
    assert not Pod(programmer, pod, backend).differs(None)
    assert pod.run(["nft", "list", "ruleset"]) == ""
    if backend is Choice.LEGACY:
        assert pod.run(["cat", "/proc/self/net/ip_tables_names"]) == tables == ""


@pytest.mark.parametrize("kind", ["legacy", "nft"])
def test_another_proxys_redirect_is_named_and_never_touched(
    kind: Backend, programmer: ChildProgrammer, pod: Netns, backend: Choice
) -> None:
    istio_like(pod, kind)
    before = legacy_save(pod), nft_save(pod)
    with pytest.raises(RefusedError, match="ISTIO_OUTPUT"):
        Pod(programmer, pod, backend).apply(Policy())
    assert (legacy_save(pod), nft_save(pod)) == before


def test_the_backend_follows_what_the_namespace_uses(programmer: ChildProgrammer) -> None:
    ruleset = compile_policy(Policy())
    for arrange, expected in (
        (None, BackendName.NFT),
        (strangers_nft, BackendName.NFT),
        (strangers_legacy, BackendName.LEGACY),
    ):
        with Netns() as pod:
            if arrange:
                arrange(pod)
            assert programmer.apply(Target(pod.path), ruleset, Choice.AUTO).found.plan.backend is expected


def test_a_pod_stays_with_the_backend_that_it_has(programmer: ChildProgrammer, pod: Netns, backend: Choice) -> None:
    Pod(programmer, pod, backend).apply(Policy())
    again = programmer.apply(Target(pod.path), compile_policy(POLICIES["include_nothing"]), Choice.AUTO)
    assert again.found.plan.backend == backend.value


def test_moving_to_the_other_backend_removes_the_first(
    programmer: ChildProgrammer, lab: Topology, backend: Choice, open_to: Opener
) -> None:
    other = Choice.LEGACY if backend is Choice.NFT else Choice.NFT
    Pod(programmer, lab.pod, backend).apply(Policy())
    through = open_to(lab.client, Dial("203.0.113.10", 443))
    assert Pod(programmer, lab.pod, other).apply(Policy())
    assert not Pod(programmer, lab.pod, other).differs(Policy())
    assert through.echo() == "sidecar"
    assert lab.client.connect(Dial("203.0.113.10", 443)).verdict == "intercepted"


def test_a_stranger_ahead_of_us_is_overtaken_or_named(
    programmer: ChildProgrammer, lab: Topology, backend: Choice
) -> None:
    mine = Pod(programmer, lab.pod, backend)
    mine.apply(Policy())
    if backend is Choice.LEGACY:
        lab.pod.run(
            ["iptables-legacy", "-t", "nat", "-I", "OUTPUT", "1", "-p", "tcp", "--dport", "443", "-j", "ACCEPT"]
        )
        assert lab.client.connect(Dial("203.0.113.10", 443)).verdict == "bypassed"
        assert mine.differs(Policy())
        assert mine.apply(Policy())
        assert lab.client.connect(Dial("203.0.113.10", 443)).verdict == "intercepted"
        assert "--dport 443 -j ACCEPT" in lab.pod.run(["iptables-legacy-save", "-t", "nat"])
    else:
        ahead = "type nat hook output priority -150; tcp dport 443 dnat to 203.0.113.99:443;"
        lab.pod.nft(f"table ip first {{ chain c {{ {ahead} }}; }}")
        applied = programmer.apply(mine.target, compile_policy(Policy()), backend)
        assert [c.kind for c in applied.remaining.changes] == [ChangeKind.AHEAD]
        assert "first" in applied.remaining.changes[0].text


def test_a_backend_that_is_not_there_is_named(programmer: ChildProgrammer) -> None:
    assert programmer.backends() == {BackendName.NFT: None, BackendName.LEGACY: None}


@pytest.mark.parametrize("kind", ["real", "memory"])
def test_the_programmer_in_memory_keeps_the_same_promises(kind: str, programmer: ChildProgrammer, pod: Netns) -> None:
    target = Target(pod.path)
    subject: Programmer = programmer if kind == "real" else MemoryProgrammer({pod.path: Namespace()})
    first, second = (compile_policy(POLICIES[name]) for name in ("default", "dns_capture"))
    assert not subject.observe(target, None, Choice.AUTO).plan
    assert subject.observe(target, first, Choice.AUTO).plan
    applied = subject.apply(target, first, Choice.AUTO)
    assert applied.found.plan
    assert not applied.remaining
    assert not subject.apply(target, first, Choice.AUTO).found.plan
    assert subject.observe(target, second, Choice.AUTO).plan
    assert subject.observe(target, second, Choice.AUTO).ruleset_id == first.id
    assert subject.clear(target, now=False).removed
    assert not subject.observe(target, None, Choice.AUTO).plan
    with pytest.raises(Exception, match="cannot open network namespace"):
        subject.observe(Target("/nowhere"), first, Choice.AUTO)


@pytest.mark.parametrize("name", EVERY_POLICY)
def test_the_plan_in_memory_is_the_plan_in_the_kernel(
    name: str, programmer: ChildProgrammer, pod: Netns, backend: Choice
) -> None:
    memory = MemoryProgrammer({pod.path: Namespace()})
    planned, found = (
        subject.observe(Target(pod.path), compile_policy(POLICIES[name]), backend).plan
        for subject in (memory, programmer)
    )
    assert planned == found


def test_a_rule_set_that_the_kernel_refuses_changes_nothing(
    programmer: ChildProgrammer, pod: Netns, backend: Choice
) -> None:
    mine = Pod(programmer, pod, backend)
    mine.apply(Policy())
    before = legacy_save(pod), nft_save(pod)
    impossible = replace(Policy(), proxy_uids=(2**32 + 5,), exclude_ranges=ranges("10.0.0.0/8"))
    with pytest.raises(KernelError):
        mine.apply(impossible)
    assert (legacy_save(pod), nft_save(pod)) == before
    assert not mine.differs(Policy())


# -- a pod in a user namespace of its own (hostUsers: false) -------------------------------------------


@pytest.fixture
def of_another_user() -> Iterator[Netns]:
    """Make a bare namespace that belongs to a user namespace of its own."""
    with Netns(user_namespace=True) as netns:
        yield netns


@pytest.mark.fault(22)
def test_legacy_rules_for_another_user_namespace_are_refused_before_anything_changes(
    programmer: ChildProgrammer, of_another_user: Netns
) -> None:
    for _ in range(2):
        with pytest.raises(KernelError, match=r"backend legacy .* another user namespace .* use the nft backend"):
            Pod(programmer, of_another_user, Choice.LEGACY).apply(Policy())
        assert (legacy_save(of_another_user), nft_save(of_another_user)) == ({}, {})


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param("", id="in an empty namespace"),
        pytest.param("-d 198.18.0.0/15 -j ACCEPT", id="among strangers' legacy rules"),
        pytest.param("-m comment --comment nodeagent:keep", id="after an agent that left its tracking rule there"),
    ],
)
def test_auto_goes_by_nft_where_legacy_rules_would_be_refused(
    rules: str, programmer: ChildProgrammer, of_another_user: Netns
) -> None:
    if rules:
        of_another_user.run(["iptables-legacy", "-t", "mangle", "-A", "OUTPUT", *rules.split()])
    theirs = {table: text for table, text in legacy_save(of_another_user).items() if "nodeagent:" not in text}
    applied = programmer.apply(Target(of_another_user.path), compile_policy(Policy()), Choice.AUTO)
    assert applied.found.plan.backend is BackendName.NFT
    assert not applied.remaining
    assert not Pod(programmer, of_another_user, Choice.NFT).differs(Policy())
    left = {table: text for table, text in legacy_save(of_another_user).items() if "-A " in text}
    assert left == theirs
    assert programmer.clear(Target(of_another_user.path), now=False).removed
    assert nft_save(of_another_user) == {}


@pytest.mark.fault(22)
def test_a_connection_of_another_user_namespace_is_redirected(
    programmer: ChildProgrammer, of_another_user: Netns
) -> None:
    of_another_user.ip(
        "link add world type veth peer name far\nlink set world up\naddress add 192.0.2.1/24 dev world\n"
    )
    of_another_user.ip("route add default dev world")
    Pod(programmer, of_another_user, Choice.AUTO).apply(Policy())
    with of_another_user.socket(AF_INET, SOCK_STREAM) as sidecar, of_another_user.socket(AF_INET, SOCK_STREAM) as app:
        sidecar.bind(("127.0.0.1", Policy().proxy_port))
        sidecar.listen()
        app.connect(("203.0.113.10", 443))
        accepted, source = sidecar.accept()
        accepted.close()
        assert source == app.getsockname()


# -- rules of ours in both backends, and something in the way of removing one ---------------------------

_JUMP = ("-t", "raw", "-A", "OUTPUT", "-p", "udp", "-j", "NODEAGENT_PREROUTING")


@contextmanager
def lock_held() -> Iterator[None]:
    """Hold iptables' lock, as a slow iptables-restore does."""
    with Path(os.environ["XTABLES_LOCKFILE"]).open("w", encoding="ascii") as file:
        flock(file, LOCK_EX)
        yield


@contextmanager
def owned_table(pod: Netns) -> Iterator[None]:
    """Have a table of our name that belongs to a process other than ours."""
    with subprocess.Popen([*pod.enter, "nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdin
        assert owner.stdout
        owner.stdin.write("add table inet nodeagent { flags owner; }\nlist tables\n")
        owner.stdin.flush()
        while "table inet nodeagent" not in owner.stdout.readline():
            pass
        try:
            yield
        finally:
            owner.stdin.close()


VERBS: dict[str, Callable[[ChildProgrammer, Netns], object]] = {
    "apply by nft": lambda programmer, pod: Pod(programmer, pod, Choice.NFT).apply(POLICIES["include_nothing"]),
    "apply by legacy": lambda programmer, pod: Pod(programmer, pod, Choice.LEGACY).apply(POLICIES["include_nothing"]),
    "clear": lambda programmer, pod: programmer.clear(Target(pod.path), now=False),
    "clear now": lambda programmer, pod: programmer.clear(Target(pod.path), now=True),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("both", [False, True], ids=["ours stand in legacy tables", "ours stand in both backends"])
@pytest.mark.parametrize("obstacle", ["the lock is held", "a stranger jumps to our chain"])
def test_what_stands_in_the_way_is_found_before_anything_changes(
    obstacle: str,
    verb: str,
    both: bool,  # noqa: FBT001  # a column of the table
    programmer: ChildProgrammer,
    pod: Netns,
) -> None:
    Pod(programmer, pod, Choice.LEGACY).apply(POLICIES["dns_capture"])
    if both:
        pod.nft((GOLDENS / "nft/default.nft").read_text())
    if obstacle == "a stranger jumps to our chain":
        pod.run(["iptables-legacy", *_JUMP])
    before = legacy_save(pod), nft_save(pod)
    kind, says = (BusyError, "lock") if obstacle == "the lock is held" else (RefusedError, "remove that rule first")
    with lock_held() if kind is BusyError else nullcontext(), pytest.raises(kind, match=says):
        VERBS[verb](programmer, pod)
    assert (legacy_save(pod), nft_save(pod)) == before


@pytest.mark.exhaustive  # Linux 5.12 and newer
@pytest.mark.parametrize("verb", VERBS)
def test_a_table_of_our_name_that_is_another_process_s_is_named(
    verb: str, programmer: ChildProgrammer, pod: Netns
) -> None:
    Pod(programmer, pod, Choice.LEGACY).apply(Policy())
    with owned_table(pod):
        before = legacy_save(pod), nft_save(pod)
        with pytest.raises(RefusedError, match=r"inet nodeagent belongs to another process .* end that process"):
            VERBS[verb](programmer, pod)
        assert (legacy_save(pod), nft_save(pod)) == before
