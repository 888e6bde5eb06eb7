"""What outlives the agent: read back as written, in full or not at all, by one agent, bounded."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from random import Random

import pytest

from nodeagent.errors import AnotherAgentError, InputError, StateError
from nodeagent.ledger import Changes, Correction, KnownSeries, KnownSlot, Memory
from nodeagent.model import NETNS_POD, Counters, PodName, PodRecord, Policy, Ranges, Sourced
from nodeagent.state import HIGHEST_NUMBER, Store, database
from nodeagent.state.documents import identify, read_policy, write_policy
from nodeagent.state.pods import MOST_EPOCHS
from nodeagent.state.schema import SCRIPTS, TABLES
from nodeagent.state.store import FILE
from tests.cases.generate import sequence
from tests.cases.policies import POLICIES, ports, ranges
from tests.unit.state_writer import LINE, changes, generation_of

KILLS = 25

POD, NETNS = 7, NETNS_POD | 4711
EXCLUDING = Policy(exclude_ranges=ranges("203.0.113.0/24"), sources={"exclude_ranges": "annotation a/b \udcff\n"})
RECORD = PodRecord(
    name=PodName("shop", "cart-0", "3b1e"),
    id=POD,
    policy=EXCLUDING,
    enforced=False,
    redirected_by_other=True,
    epochs={2: Policy(), 4: EXCLUDING, 6: Policy()},
    containers={71: "app", 2**63 + 1: "istio-proxy"},
    sidecars=frozenset({2**63 + 1}),
    interfaces={1: "lo", 2: "eth0"},
)
BY_NETNS = replace(RECORD, id=NETNS, name=PodName("shop", "cart-1", "9c2f"))

FLOW = KnownSlot(4100, 3, "7 203.0.113.10 …", evicted=False, pod=POD, container=71, line=LINE, base=Counters(1, 2, 3))
LOOPBACK = KnownSlot(
    4101, 2**32 - 1, "loopback", evicted=True, pod=NETNS, container=2**63 + 1, line=None, base=Counters()
)
CHANGES = Changes(
    slots=(FLOW, LOOPBACK),
    corrections=(Correction(NETNS, 2**63 + 1, LINE.account, Counters(-1, -(2**70))),),
    series=(
        KnownSeries(POD, LINE, active=True, offset=Counters(bytes=-5)),
        KnownSeries(NETNS, LINE, active=False, offset=Counters(bytes=9)),
    ),
    ended={NETNS: 12.5},
    dropped_bytes=2**65,
)
KEPT = Memory(
    slots=CHANGES.slots,
    corrections=CHANGES.corrections,
    series=CHANGES.series,
    records={POD: RECORD, NETNS: BY_NETNS},
    ended={NETNS: 12.5},
    dropped_bytes=2**65,
)


def canonical(memory: Memory) -> Memory:
    """Return *memory* with its parts in one order."""
    return replace(memory, slots=tuple(sorted(memory.slots)), series=tuple(sorted(memory.series)))


def rows(store: Store, table: str) -> int:
    """Return how many rows a table has."""
    return int(store._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608  # a constant of ours


def filled(directory: Path) -> Store:
    store = Store.open(directory)
    store.save([RECORD, BY_NETNS])
    store.commit(CHANGES, Memory)
    return store


def test_what_was_kept_is_read_back_as_it_was(tmp_path: Path) -> None:
    store = filled(tmp_path / "new" / "directory")
    assert store.began == "nothing was kept so far"
    numbers = dict(store.numbers)
    store.close()
    again = Store.open(tmp_path / "new" / "directory")
    assert (again.began, again.problem, again.numbers) == (None, None, numbers)
    assert canonical(again.memory) == canonical(KEPT)
    first, second = (record.epochs[2] for record in again.memory.records.values())
    assert first is second, "equal policies are one object"


def test_what_could_not_be_kept_is_kept_in_full_later(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    many = replace(CHANGES, slots=tuple(FLOW._replace(position=n, key="x" * 99) for n in range(999)))
    with pytest.raises(StateError, match="database or disk is full"):
        store.commit(many, Memory)
    assert (
        store.problem == "state cannot be written: database or disk is full: counts will jump when the agent restarts"
    )
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.save([RECORD, BY_NETNS])
    assert "disk is full" in (store.problem or ""), "the ledger's part is still missing"
    store.commit(Changes(), lambda: replace(KEPT, records={}))
    assert not store.problem
    store.close()
    assert canonical(Store.open(tmp_path).memory) == canonical(KEPT)


def test_pods_that_are_gone_leave_nothing(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.commit(Changes(free=(4100, 4101), forgotten=frozenset({POD, NETNS}), dropped_bytes=5), Memory)
    store.close()
    store = Store.open(tmp_path)
    assert store.memory == Memory(forgotten=frozenset({POD, NETNS}), dropped_bytes=5)
    assert len(store.numbers) == 2, "the kernel may still hold their slots"
    store.commit(Changes(vacated=frozenset({POD, NETNS})), Memory)
    assert not store.numbers
    assert {table: rows(store, table) for table in TABLES} == dict.fromkeys(TABLES, 0) | {"facts": 2}


def test_a_number_is_given_again_only_after_its_slots_are_gone(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    assert [store.number(pod) for pod in (11, 12, 11)] == [1, 2, 1]
    store.save([replace(RECORD, id=11)])
    store.commit(Changes(forgotten=frozenset({11})), Memory)
    assert store.number(13) == 3
    store.commit(Changes(vacated=frozenset({11})), Memory)
    assert store.number(14) == 1


def test_a_pod_that_has_ended_is_remembered_without_its_number(tmp_path: Path) -> None:
    store = filled(tmp_path)
    number = store.number(NETNS)
    store.commit(Changes(vacated=frozenset({NETNS})), Memory)
    assert store.number(13) == number
    store.save([replace(RECORD, id=13)])
    store.close()
    again = Store.open(tmp_path)
    assert (again.memory.records[NETNS], again.numbers) == (BY_NETNS, {POD: 1, 13: number})
    assert again.number(NETNS) == 3, "it is back, and another pod has its number"


def test_a_pod_that_came_back_keeps_its_number(tmp_path: Path) -> None:
    """It was saved again before the ledger saw it: that its old slots are gone is then no news."""
    store = filled(tmp_path)
    store.commit(Changes(forgotten=frozenset({POD})), Memory)
    store.save([RECORD])
    store.commit(Changes(vacated=frozenset({POD})), Memory)
    store.close()
    again = Store.open(tmp_path)
    assert (again.numbers[POD], again.memory.records[POD]) == (1, RECORD)


def test_numbers_end() -> None:
    store = Store.volatile()
    assert [store.number(pod) for pod in range(HIGHEST_NUMBER)] == list(range(1, HIGHEST_NUMBER + 1))
    with pytest.raises(StateError, match="all 1023 numbers of pods are taken"):
        store.number(5000)


def test_edits_without_end_take_bounded_room(tmp_path: Path) -> None:
    store, epochs = Store.open(tmp_path), {}
    for n in range(1, 301):
        epochs[2 * n] = Policy(exclude_ports=ports(n))
        store.save([replace(RECORD, policy=epochs[2 * n], epochs=epochs)])
    store.close()
    kept = Store.open(tmp_path)
    assert sorted(kept.memory.records[POD].epochs) == [2, *range(602 - 2 * (MOST_EPOCHS - 1), 602, 2)]
    assert rows(kept, "policies") < 3 * MOST_EPOCHS


@pytest.mark.fault(12)
def test_another_boot_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path).close()
    (tmp_path / "boot_id").write_text("5e1f\n")
    monkeypatch.setattr(database, "BOOT_ID", tmp_path / "boot_id")
    store = Store.open(tmp_path)
    assert (store.began, store.memory, store.numbers) == ("what was kept is of another boot", Memory(), {})
    store.close()
    assert Store.open(tmp_path).began is None


def test_an_older_agents_state_is_upgraded_and_a_newer_ones_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path).close()
    with monkeypatch.context() as newer:
        newer.setattr(database, "SCRIPTS", (*SCRIPTS, "ALTER TABLE pods ADD COLUMN shoe_size INTEGER"))
        store = Store.open(tmp_path)
        assert (store.began, canonical(store.memory)) == (None, canonical(KEPT))
        store.close()
    with pytest.raises(StateError, match=r"newer agent .version 2, this one knows 1.: run that one, or remove"):
        Store.open(tmp_path)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda text: bytes(len(text)),
    "a text": lambda _: b"not a database, but as long as the header of one would be" * 9,
    "cut off": lambda text: text[: len(text) // 2],
    "a policy of nobody's": lambda text: text.replace(b'"mode":"enforce"', b'"mode":"enfarce"'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_set_aside(tmp_path: Path, damage: str) -> None:
    filled(tmp_path).close()
    file = tmp_path / FILE
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    store = Store.open(tmp_path)
    assert (store.began or "").startswith("what was kept is damaged: "), store.began
    assert (store.memory, (tmp_path / "state.damaged").exists()) == (Memory(), True)
    store.save([RECORD])
    store.close()
    assert Store.open(tmp_path).memory.records == {POD: RECORD}


def linked(path: Path) -> None:
    path.mkdir()
    (path / "agent.lock").symlink_to("/dev/null")


UNUSABLE: dict[str, Callable[[Path], object]] = {
    "a file where the directory should be": lambda path: path.write_text(""),
    "a directory where the lock should be": lambda path: (path / "agent.lock").mkdir(parents=True),
    "a link where the lock should be": linked,
    "a directory where the state should be": lambda path: (path / FILE).mkdir(parents=True),
}


@pytest.mark.parametrize("make", UNUSABLE.values(), ids=UNUSABLE)
def test_a_place_that_cannot_be_used_is_an_error_that_says_what_follows(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "state")
    with pytest.raises(StateError, match=r"state.*: counts will jump when the agent restarts"):
        Store.open(tmp_path / "state")


@pytest.mark.fault(38)
def test_a_second_agent_is_refused_by_name(tmp_path: Path) -> None:
    first = Store.open(tmp_path)
    with pytest.raises(AnotherAgentError, match=r"another agent is at work here \(process [0-9]+\): end it"):
        Store.open(tmp_path)
    first.close()
    Store.open(tmp_path).close()


def test_a_second_agent_may_wait_for_the_first_to_end(tmp_path: Path) -> None:
    first = filled(tmp_path)
    ends = threading.Timer(0.3, first._lock.close)  # type: ignore[union-attr]  # a store on disk has one
    first._db.close()
    ends.start()
    second = Store.open(tmp_path, wait=60)
    ends.join()
    assert canonical(second.memory) == canonical(KEPT)


def test_an_agent_that_is_killed_at_any_moment_leaves_a_state_in_full(tmp_path: Path) -> None:
    random, told = Random(3), 0
    for _ in range(KILLS):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.unit.state_writer", str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout
            for _line in range(random.randrange(1, 8)):
                told = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            told = max(told, *map(int, writer.stdout.read().split()), 0)
        store = Store.open(tmp_path)
        found = generation_of(store.memory)
        assert told <= found <= told + 1
        (record,) = store.memory.records.values()
        assert max(record.epochs) // 2 in (found, found + 1), "the pod is kept ahead of what it changes"
        store.close()


# -- documents


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_policy_is_read_back_with_its_sources(policy: Policy) -> None:
    policy = replace(policy, sources={"mode": "annotation a/b"})
    document = write_policy(policy)
    assert read_policy(document) == policy
    assert document.isascii()


def test_random_policies_are_read_back_and_told_apart() -> None:
    policies = [case.policy for case in sequence(seed=11, count=400)]
    documents = [write_policy(policy) for policy in policies]
    assert [read_policy(document) for document in documents] == policies
    ids = {identify(document): policy for document, policy in zip(documents, policies, strict=True)}
    assert all(ids[identify(document)] == policy for document, policy in zip(documents, policies, strict=True))


def test_equal_ranges_of_different_sources_are_two_policies() -> None:
    net = ip_network("10.0.0.0/8")
    one, two = (Policy(exclude_ranges=Ranges((Sourced(net, source),))) for source in ("a", "b"))
    assert identify(write_policy(one)) != identify(write_policy(two))


GARBAGE = {
    "nothing": "",
    "another type": "[]",
    "a missing field": "{}",
    "another spelling": write_policy(Policy()).replace(":", ": "),
    "an unknown field": write_policy(Policy()).replace("{", '{"a":1,', 1),
    "an unknown mode": write_policy(Policy()).replace("enforce", "enfarce"),
}


@pytest.mark.parametrize("document", GARBAGE.values(), ids=GARBAGE)
def test_what_nobody_wrote_is_no_policy(document: str) -> None:
    with pytest.raises(InputError, match="not a policy as the agent keeps it"):
        read_policy(document)


def test_a_volatile_store_keeps_nothing() -> None:
    store = Store.volatile()
    store.save([RECORD])
    store.commit(CHANGES, Memory)
    store.commit(changes(1), Memory)
    store.close()
    assert Store.volatile().memory == Memory()
