"""What Services are called: asked for by address, rarely, and forgotten before there are too many."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network
from typing import Final

import pytest

from nodeagent.kube import services
from nodeagent.kube.client import Patience
from nodeagent.kube.credentials import Credentials
from nodeagent.kube.services import MOST_AT_ONCE, MOST_KEPT, ServiceNames
from nodeagent.ledger import Naming
from tests.kube.fake import FakeServer, serving
from tests.kube.scene import PATIENCE, connected, run

RANGES: Final = (ip_network("10.96.0.0/16"), ip_network("fd00:96::/112"))
API, API6, FREE, FAR = map(ip_address, ("10.96.0.1", "fd00:96::1", "10.96.0.9", "203.0.113.1"))
CALLED: Final = {str(API): ("default", "kubernetes"), str(API6): ("default", "kubernetes")}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for answers as long as a busy machine needs."""
    monkeypatch.setattr(services, "LONGEST", PATIENCE)


class Clock:
    """Stands still until somebody moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[FakeServer, ServiceNames, Clock]]:
    async with serving() as server:
        server.services = dict(CALLED)
        clock = Clock()
        async with connected(Credentials(server=server.url), Patience(connect=PATIENCE, answer=PATIENCE)) as client:
            yield server, ServiceNames(client, RANGES, clock), clock


def asked(server: FakeServer) -> list[str]:
    return [path.rpartition("/")[2] for _, path, _ in server.requests]


def test_a_service_is_called_by_its_name_in_both_families_and_nobody_else_is_asked_for() -> None:
    async def scene() -> None:
        async with asking() as (server, names, _):
            for address in (API, API6, FREE, FAR):
                assert names.name(address, 443) is None
            assert await names.learn([API, API6, FREE, FAR]), "who asked before is to be told"
            assert [names.name(address, 443) for address in (API, API6, FREE, FAR)] == [
                *["kubernetes.default"] * 2,
                *[None] * 2,
            ]
            assert asked(server) == [str(API), str(API6), str(FREE)]
            assert {query["resourceVersion"] for _, _, query in server.requests} == {"0"}, "etcd is not asked"

    run(scene)


def test_what_is_known_in_time_is_no_news_and_not_asked_for_again() -> None:
    async def scene() -> None:
        async with asking() as (server, names, clock):
            assert not await names.learn([API, FREE])
            assert names.name(API, 443) == "kubernetes.default"
            clock.now += 500
            assert not await names.learn([API, FREE])
            assert asked(server) == [str(API), str(FREE)]
            clock.now += 500
            await names.learn([API, FREE])
            assert asked(server)[2:] == [str(FREE)], "what was nobody's may be somebody's by now"
            clock.now += 3000
            server.services[str(API)] = ("shop", "cart")
            assert await names.learn([API]), "the address was given to another one"
            assert names.name(API, 443) == "cart.shop"

    run(scene)


def test_at_most_so_many_are_asked_for_at_once_and_kept_at_all() -> None:
    async def scene() -> None:
        async with asking() as (server, names, _):
            many = [ip_address(int(API) + number) for number in range(MOST_AT_ONCE * 2 + 1)]
            for expected in (MOST_AT_ONCE, 2 * MOST_AT_ONCE, len(many), len(many)):
                await names.learn(many)
                assert len(server.requests) == expected
            for number in range(2 * MOST_KEPT):
                names.name(ip_address(int(API) + number), 1)
                names._keep(ip_address(int(API) + number), None)
                names.name(ip_address(int(FAR) + number), 1)
            assert len(names._known) == MOST_KEPT
            assert len(names._passed) <= MOST_KEPT
            assert len(names._elsewhere) <= MOST_KEPT

    run(scene)


FAULTS: Final[dict[str, tuple[Callable[[FakeServer], None], str, float]]] = {
    "no right to": (lambda server: _refuse(server, 403), "the ClusterRole has to allow", 600),
    "too many requests": (lambda server: _refuse(server, 429, {"Retry-After": "45"}), "429", 45),
    "an older Kubernetes": (
        lambda server: _refuse(server, 404, body="the server could not find the requested resource"),
        "could not find the requested resource",
        600,
    ),
    "an answer that is none": (lambda server: _refuse(server, 200, body="<html>"), "cannot be read", 600),
    "no answer in time": (lambda server: setattr(server.faults, "delay", 60), "in time", 30),
}


def _refuse(server: FakeServer, status: int, headers: dict[str, str] | None = None, body: str = "") -> None:
    faults = server.faults
    faults.refusals, faults.status, faults.headers = 1, status, headers or {}
    faults.body = body if status == 200 or not body else json.dumps({"kind": "Status", "message": body})


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_fails_an_address_is_an_address_for_a_while(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cause, says, pause = FAULTS[fault]

    async def scene() -> None:
        async with asking() as (server, names, clock):
            cause(server)
            monkeypatch.setattr(services, "LONGEST", 0.2 if server.faults.delay else PATIENCE)
            assert names.name(API, 443) is None
            assert not await names.learn([API])
            assert says in (names.problem or "")
            server.faults.refusals, server.faults.delay = 0, 0.0
            clock.now += pause - 1
            before = len(server.requests)
            assert not await names.learn([API])
            assert len(server.requests) == before
            clock.now += 2
            monkeypatch.setattr(services, "LONGEST", PATIENCE)
            assert await names.learn([API])
            assert (names.problem, names.name(API, 443)) == (None, "kubernetes.default")

    run(scene)


@pytest.mark.parametrize(
    "parent",
    [("default", "x" * 64), ("default", 'a"b'), ("../..", "kubernetes"), ("", "kubernetes"), ("default", "a\nb")],
)
def test_a_name_that_no_service_can_have_is_none(parent: tuple[str, str]) -> None:
    async def scene() -> None:
        async with asking() as (server, names, _):
            server.services[str(API)] = parent
            await names.learn([API])
            assert names.name(API, 443) is None

    run(scene)


def test_a_name_is_awaited_for_a_moment_and_an_old_one_holds_while_nobody_says() -> None:
    async def scene() -> None:
        async with asking() as (server, names, clock):
            naming = Naming(service=names.name, is_unknown=names.is_unknown)
            assert [names.is_awaited(address) for address in (API, FAR)] == [True, False]
            clock.now += 6
            assert not names.is_awaited(API)
            assert naming.name(API, 443, "cart.shop") == "cart.shop"
            assert naming.name(FAR, 443, "cart.shop") == str(FAR)
            assert naming.name(API, 443) == str(API)
            await names.learn([API])
            assert naming.name(API, 443, "cart.shop") == "kubernetes.default"
            server.faults.refusals, server.faults.status = 1, 503
            await names.learn([FREE])
            assert not names.is_awaited(ip_address("10.96.0.77")), "nobody answers: nobody waits"

    run(scene)


def test_without_ranges_nobody_is_ever_asked() -> None:
    async def scene() -> None:
        async with asking() as (server, names, _):
            names.configure(())
            assert not names.is_asked
            assert not await names.learn([API, FAR])
            assert names.name(API, 443) is None
            assert not server.requests
            names.configure(RANGES)
            await names.learn([API, FAR])
            assert names.name(API, 443) == "kubernetes.default"

    run(scene)
