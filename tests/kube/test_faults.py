"""What goes wrong between a node and the API server, and what the agent knows meanwhile.

Rows are those of the list of faults in docs/reliability.md.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from nodeagent.errors import InputError
from nodeagent.kube import pacing
from nodeagent.kube.client import Client, Patience
from nodeagent.kube.credentials import Credentials
from nodeagent.kube.watch import PodWatch, Rhythm
from nodeagent.policy import Keys
from tests.kube.fake import FakeServer, Object, serving
from tests.kube.scene import ANNOTATION, connected, names, pod, run, seen, until, watching

QUICK = Rhythm(shortest=5, longest=6, silence=0.5, grace=0.5)
IMPATIENT = Patience(connect=1, answer=0.5)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait as an agent does, in a hundredth of the time."""
    monkeypatch.setattr(pacing, "FIRST", 0.01)
    monkeypatch.setattr(pacing, "LONGEST", 0.6)


@asynccontextmanager
async def node(*pods: str) -> AsyncIterator[tuple[FakeServer, Client]]:
    async with serving() as server:
        for name in pods:
            await server.put(pod(name))
        async with connected(Credentials(server=server.url), IMPATIENT) as client:
            yield server, client


def known(watch: PodWatch) -> set[str]:
    """Return the names of the pods that are known now."""
    assert watch.snapshot
    return {key.name for key in watch.snapshot.pods}


@pytest.mark.parametrize("no_streams", [False, True], ids=["a server that streams lists", "a server that does not"])
def test_pods_come_change_and_go(no_streams: bool) -> None:  # noqa: FBT001  # a table of two rows
    async def scene() -> None:
        async with node("a") as (server, client), watching(client) as watch:
            server.faults.no_streams = no_streams
            await names(watch, "a")
            await server.put(pod("b"))
            await server.put(pod("elsewhere", node="node-2"))
            await names(watch, "a", "b")
            await server.put(pod("a", ports="25"))
            assert (await seen(watch, lambda pods: pods["a"].annotations[ANNOTATION] == "25")).keys() == {"a", "b"}
            await server.drop("a")
            await names(watch, "b")
            assert watch.problem is None
            assert len(server.lists) == 1 + no_streams

    run(scene)


@pytest.mark.fault(6)
def test_row_6_a_server_that_is_away_at_the_start_is_no_crash() -> None:
    async def scene() -> None:
        async with node("a") as (server, client):
            await server.stop()
            async with watching(client) as watch:
                await until(lambda: "cannot be reached" in (watch.problem or ""))
                assert watch.snapshot is None
                await server.start()
                await names(watch, "a")

    run(scene)


@pytest.mark.fault(6)
def test_row_6_credentials_that_are_missing_are_no_crash() -> None:
    async def scene() -> None:
        async def load() -> Credentials:
            raise InputError("no credentials")

        async with Client(load) as client, watching(client) as watch:
            await until(lambda: watch.problem == "no credentials")

    run(scene)


@pytest.mark.fault(7)
def test_row_7_a_slow_server_delays_nothing_but_its_news() -> None:
    async def scene() -> None:
        async with node("a") as (server, client), watching(client, rhythm=QUICK) as watch:
            await names(watch, "a")
            server.faults.delay = 60
            server.faults.is_mute = True
            await until(lambda: "cannot be reached" in (watch.problem or ""))
            assert known(watch) == {"a"}
            server.faults.delay = 0
            server.faults.is_mute = False
            await server.put(pod("b"))
            await names(watch, "a", "b")

    run(scene)


@pytest.mark.fault(8)
def test_row_8_410_is_a_new_list_of_which_only_differences_matter() -> None:
    async def scene() -> None:
        async with node("a", "b", "c") as (server, client), watching(client) as watch:
            before = await seen(watch, lambda pods: len(pods) == 3)
            await server.stop()
            await server.put(pod("b", ports="25"))
            await server.drop("c")
            await server.put(pod("d"))
            server.compact()
            await server.start()
            after = await seen(watch, lambda pods: "d" in pods)
            assert set(after) == {"a", "b", "d"}
            assert after["a"] is before["a"]
            assert [query["resourceVersion"] for query in server.lists] == ["0", "103"]

    run(scene)


@pytest.mark.parametrize("after", ["1", "Mon, 01 Jan 2001 00:00:00 GMT", "", "soon"])
def test_429_is_obeyed_however_it_says_when(after: str) -> None:
    async def scene() -> None:
        async with node("a") as (server, client):
            server.faults.refusals, server.faults.headers = 2, {"Retry-After": after} if after else {}
            loop = asyncio.get_running_loop()
            began = loop.time()
            async with watching(client) as watch:
                await names(watch, "a")
            assert loop.time() - began >= (2 if after == "1" else 0)
            assert len(server.requests) == 3

    run(scene)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(500, '{"kind": "Status", "reason": "InternalError", "message": "etcd"}', id="an error of its own"),
        pytest.param(502, "<html>bad gateway</html>", id="a proxy's page"),
        pytest.param(503, "", id="nothing to say"),
        pytest.param(401, '{"kind": "Status", "reason": "Unauthorized"}', id="a token that has expired"),
        pytest.param(403, '{"kind": "Status", "reason": "Forbidden", "message": "cannot list pods"}', id="no right"),
        pytest.param(404, "not here", id="another server"),
        pytest.param(302, "", id="a way to elsewhere, which is not taken"),
        pytest.param(200, "<html>log in</html>", id="a page to log in"),
        pytest.param(200, '{"type": "ADDED"}\n', id="half an event"),
        pytest.param(200, '{"type": "ERROR", "object": {"code": 500, "message": "etcd"}}\n', id="an error as an event"),
    ],
)
def test_whatever_it_answers_is_said_and_waited_out(status: int, body: str) -> None:
    async def scene() -> None:
        async with node("a") as (server, client):
            server.faults.refusals, server.faults.status, server.faults.body = 10**6, status, body
            async with watching(client) as watch:
                await until(lambda: watch.problem != "the API server was not asked yet")
                assert watch.problem
                assert watch.problem.startswith("the API server")
                assert watch.snapshot is None
                server.faults.refusals = 0
                await names(watch, "a")
                await until(lambda: watch.problem is None)  # after a plain list, once the watch stands

    run(scene)


@pytest.mark.fault(9)
def test_row_9_a_watch_that_dies_silently_is_noticed_by_its_bookmarks() -> None:
    async def scene() -> None:
        async with node("a") as (server, client), watching(client, rhythm=QUICK) as watch:
            await names(watch, "a")
            await until(lambda: watch._has_bookmarks)
            server.faults.is_mute = True
            await until(lambda: "said nothing" in (watch.problem or ""))
            server.faults.is_mute = False
            await server.put(pod("b"))
            await names(watch, "a", "b")

    run(scene)


@pytest.mark.fault(10)
def test_row_10_events_in_any_order_any_number_of_times_give_the_same_pods() -> None:
    async def scene() -> None:
        async with node() as (server, client), watching(client) as watch:
            await until(lambda: watch.snapshot is not None)
            told: list[tuple[str, Object]] = []
            for kind, name, ports in [
                ("ADDED", "a", "1"),
                ("ADDED", "b", "1"),
                ("MODIFIED", "a", "2"),
                ("DELETED", "b", "1"),
                ("ADDED", "c", "1"),
                ("MODIFIED", "a", "3"),
            ]:
                item = pod(name, ports)
                item["metadata"] |= {"uid": f"uid-{name}", "resourceVersion": str(200 + len(told))}
                told.append((kind, item))
            shuffled = told * 3
            random.Random(4).shuffle(shuffled)
            last = pod("last")
            last["metadata"] |= {"uid": "uid-last", "resourceVersion": "300"}
            await server.replay(*shuffled, ("ADDED", last))
            found = await seen(watch, lambda pods: "last" in pods)
            assert {name: item.annotations[ANNOTATION] for name, item in found.items()} == {
                "a": "3",
                "c": "1",
                "last": "3306",
            }

    run(scene)


@pytest.mark.fault(11)
@pytest.mark.parametrize("no_streams", [False, True], ids=["a stream of objects", "one answer"])
def test_row_11_a_list_that_is_cut_midway_counts_for_nothing(no_streams: bool) -> None:  # noqa: FBT001
    async def scene() -> None:
        async with node("a", "b", "c") as (server, client):
            server.faults.cut_after, server.faults.no_streams = 2, no_streams
            async with watching(client) as watch:
                await until(lambda: "cut off" in (watch.problem or ""))
                assert watch.snapshot is None
                server.faults.cut_after = None
                await names(watch, "a", "b", "c")
                server.faults.cut_after = 1
                server.compact()
                await server.stop()
                await server.put(pod("b", ports="25"))
                server.compact()
                await server.start()
                lists = len(server.lists)
                await until(lambda: len(server.lists) > lists + 1)
                assert known(watch) == {"a", "b", "c"}
                server.faults.cut_after = None
                await seen(watch, lambda pods: pods["b"].annotations[ANNOTATION] == "25")

    run(scene)


@pytest.mark.fault(6)
def test_a_server_that_is_away_changes_nothing() -> None:
    async def scene() -> None:
        async with node("a", "b") as (server, client), watching(client) as watch:
            await names(watch, "a", "b")
            before = watch.snapshot
            await server.stop()
            await until(lambda: watch._backoff.failures > 5)
            assert watch.snapshot == before
            assert not watch._news.is_set()
            assert watch.age > 0
            await server.start()
            await server.put(pod("c"))
            await names(watch, "a", "b", "c")
            assert len(server.lists) == 1

    run(scene)


@pytest.mark.fault(6)
def test_row_6_a_server_that_is_away_for_a_day_is_found_again_and_nothing_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many attempts as a day has: one in half a minute, on average."""
    attempts = 24 * 60 * 60 // 30
    monkeypatch.setattr(pacing, "LONGEST", 0.0001)

    async def scene() -> None:
        async with node("a", "b") as (server, client), watching(client) as watch:
            await names(watch, "a", "b")
            before = watch.snapshot
            await server.stop()
            await until(lambda: watch._backoff.failures > attempts)
            assert watch.snapshot == before
            assert not watch._news.is_set()
            assert "cannot be reached" in (watch.problem or "")
            await server.start()
            await server.put(pod("c"))
            await names(watch, "a", "b", "c")
            assert len(server.lists) == 1

    run(scene)


def test_a_server_that_ends_every_watch_at_once_is_asked_less_and_less() -> None:
    async def scene() -> None:
        async with node("a") as (server, client):
            server.faults.ends_at_once = True
            async with watching(client) as watch:
                await until(lambda: watch._backoff.failures > 3)
                assert watch.problem == "the API server ended the watch at once"
                assert known(watch) == {"a"}

    run(scene)


def test_a_watch_that_ends_in_time_goes_on_where_it_was() -> None:
    async def scene() -> None:
        async with node("a") as (server, client), watching(client, rhythm=QUICK) as watch:
            await names(watch, "a")
            await until(lambda: len(server.requests) > 1)
            await server.put(pod("b"))
            await names(watch, "a", "b")
            assert watch.problem is None
            assert len(server.lists) == 1

    run(scene)


@pytest.mark.parametrize("is_told", [True, False], ids=["and says so", "and waits in silence"])
def test_etcd_that_was_restored_from_a_backup_is_believed(is_told: bool) -> None:  # noqa: FBT001
    """Versions begin anew, lower than those that we know."""

    async def scene() -> None:
        async with node("a") as (server, client), watching(client) as watch:
            await names(watch, "a")
            await server.stop()
            restored = pod("a", ports="25")
            restored["metadata"] |= {"uid": "uid-a", "resourceVersion": "7"}
            server.compact()
            server.compacted = 10**6 if is_told else 0
            server.pods, server._version = {"a": restored}, 7
            await server.start()
            await seen(watch, lambda pods: pods["a"].annotations[ANNOTATION] == "25")

    run(scene)


def test_a_pod_that_cannot_be_read_keeps_its_last_good_description() -> None:
    async def scene() -> None:
        async with node("a", "b") as (server, client), watching(client) as watch:
            await names(watch, "a", "b")
            odd = pod("a")
            odd["status"] = {"podIPs": [{"ip": "not an address"}]}
            await server.put(odd)
            await until(lambda: watch.snapshot and watch.snapshot.problems)
            assert watch.snapshot
            assert set(watch.snapshot.problems) == {"default/a"}
            assert known(watch) == {"a", "b"}
            await server.put(pod("a", ports="25"))
            await seen(watch, lambda pods: pods["a"].annotations[ANNOTATION] == "25")
            assert not watch.snapshot.problems

    run(scene)


def test_a_selector_that_asks_for_more_lists_anew() -> None:
    async def scene() -> None:
        async with node() as (server, client), watching(client) as watch:
            labelled = pod("a")
            labelled["metadata"]["labels"] = {"mesh": "on"}
            await server.put(labelled)
            await seen(watch, lambda pods: "a" in pods and not pods["a"].labels)
            watch.select(Keys(frozenset({"mesh"}), frozenset()))
            await seen(watch, lambda pods: pods["a"].labels == {"mesh": "on"})
            watch.select(Keys(frozenset(), frozenset()))
            assert len(server.lists) == 2

    run(scene)
