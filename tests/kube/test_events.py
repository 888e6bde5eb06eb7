"""Events about pods: what they say, how often, and that nothing ever waits for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from nodeagent.kube import events
from nodeagent.kube.credentials import Credentials
from nodeagent.kube.events import PERIOD, Events, Kind
from nodeagent.model import PodKey
from nodeagent.policy import resolve
from tests.kube.fake import FakeServer, serving
from tests.kube.scene import connected, run, until

WEB = PodKey("shop", "web", "u-1", "")
BAD = {"nodeagent.io/excludeOutboundPorts": "25,99999"}
MISSPELT = {"nodeagent.io/excludeOutboundPort": "25"}


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_PAUSE", 0.0)


@asynccontextmanager
async def telling(clock: Clock) -> AsyncIterator[tuple[FakeServer, Events]]:
    async with serving() as server, connected(Credentials(server=server.url)) as client:
        told = Events(client, "node-1", clock)
        task = asyncio.create_task(told.run())
        yield server, told
        assert not task.done()
        task.cancel()


def notes(server: FakeServer) -> list[str]:
    return [event["note"] for event in server.events.values()]


@pytest.mark.fault(32)
def test_a_refused_annotation_is_one_event_that_says_what_is_allowed() -> None:
    async def scene() -> None:
        async with telling(Clock()) as (server, told):
            told.judge(WEB, resolve(BAD))
            await until(lambda: server.events)
            (event,) = server.events.values()
            assert event["note"].startswith("nodeagent.io/excludeOutboundPorts: entry 2, '99999', ")
            assert event["regarding"] == {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": "shop",
                "name": "web",
                "uid": "u-1",
            }
            assert (event["reason"], event["reportingInstance"]) == ("AnnotationRefused", "nodeagent-node-1")

    run(scene)


def test_a_misspelt_key_of_ours_is_said_too() -> None:
    async def scene() -> None:
        async with telling(Clock()) as (server, told):
            told.judge(WEB, resolve(MISSPELT))
            await until(lambda: server.events)
            assert notes(server)[0].endswith("did you mean nodeagent.io/excludeOutboundPorts?")

    run(scene)


@pytest.mark.fault(32)
def test_one_request_in_ten_minutes_however_often_it_is_reported() -> None:
    async def scene() -> None:
        clock = Clock()
        async with telling(clock) as (server, told):
            told.report(WEB, Kind.NOT_INTERCEPTED, "first")
            await until(lambda: server.events)
            for number in range(100):
                told.report(WEB, Kind.NOT_INTERCEPTED, f"edit {number}")
            other = PodKey("shop", "other", "u-2", "")
            told.report(other, Kind.NOT_INTERCEPTED, "of another pod")
            await until(lambda: len(server.events) == 2)
            assert notes(server) == ["first", "of another pod"]
            clock.now += PERIOD
            told.report(other, Kind.NOT_INTERCEPTED, "of another pod")
            await until(lambda: len(server.requests) == 4)
            assert notes(server) == ["first", "of another pod", "edit 99"]
            assert server.requests[-1][0] in {"PATCH", "POST"}

    run(scene)


def test_what_is_so_still_becomes_a_series() -> None:
    async def scene() -> None:
        clock = Clock()
        async with telling(clock) as (server, told):
            for times in range(1, 4):
                told.judge(WEB, resolve(BAD))
                await until(lambda: len(server.requests) == times)  # noqa: B023  # used at once
                clock.now += PERIOD
            (event,) = server.events.values()
            assert event["series"]["count"] == 3

    run(scene)


def test_what_was_mended_meanwhile_is_not_said() -> None:
    async def scene() -> None:
        clock = Clock()
        async with telling(clock) as (server, told):
            told.judge(WEB, resolve(BAD))
            await until(lambda: server.events)
            told.judge(WEB, resolve({**BAD, "nodeagent.io/proxyPort": "x"}))
            told.judge(WEB, resolve({}))
            clock.now += PERIOD
            told.report(WEB, Kind.NOT_INTERCEPTED, "something else")
            await until(lambda: len(server.events) == 2)
            assert len(server.requests) == 2

    run(scene)


def test_an_event_that_has_expired_is_made_again() -> None:
    async def scene() -> None:
        clock = Clock()
        async with telling(clock) as (server, told):
            told.judge(WEB, resolve(BAD))
            await until(lambda: server.events)
            server.events.clear()
            clock.now += PERIOD
            told.judge(WEB, resolve(BAD))
            await until(lambda: server.events)
            assert [method for method, _, _ in server.requests] == ["POST", "PATCH", "POST"]

    run(scene)


@pytest.mark.parametrize("status", [403, 422, 500])
def test_a_server_that_takes_none_stops_nothing(status: int) -> None:
    async def scene() -> None:
        clock = Clock()
        async with telling(clock) as (server, told):
            server.faults.refusals, server.faults.status = 1, status
            told.judge(WEB, resolve(BAD))
            await until(lambda: server.requests and not server.faults.refusals)
            clock.now += PERIOD
            told.judge(WEB, resolve(BAD))
            await until(lambda: server.events)

    run(scene)


def test_pods_without_number_take_no_memory_without_number() -> None:
    async def scene() -> None:
        async with telling(Clock()) as (_server, told):
            for number in range(10_000):
                told.report(PodKey("shop", f"p{number}", str(number), ""), Kind.NOT_INTERCEPTED, "x")
            assert len(told._topics) <= 1024

    run(scene)


def test_a_hostile_note_is_printable_and_short() -> None:
    async def scene() -> None:
        async with telling(Clock()) as (server, told):
            told.report(WEB, Kind.NOT_INTERCEPTED, "\x1b[31m" + "é" * 5000)
            await until(lambda: server.events)
            assert notes(server)[0].isascii()
            assert notes(server)[0].isprintable()

    run(scene)
