"""Where the listeners can be reached, and by how many."""

import asyncio
import http.client
import socket
from contextlib import ExitStack
from http import HTTPStatus

import pytest
from aiohttp import web

from nodeagent.errors import InputError
from nodeagent.web import server
from nodeagent.web.server import MOST_CONNECTIONS, listen


async def _reached(place: str, *hosts: str) -> list[bool]:
    runner = web.AppRunner(web.Application())
    try:
        port = int((await listen(runner, place)).rpartition(":")[2])
        return [await asyncio.to_thread(_answers, host, port) for host in hosts]
    finally:
        await runner.cleanup()


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", "/", headers={"Connection": "close"})
        return connection.getresponse().status == HTTPStatus.NOT_FOUND
    except OSError:
        return False
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("place", "reached"),
    [
        pytest.param("[::]:0", [True, True], id="every address is that of both families"),
        pytest.param("0.0.0.0:0", [True, False], id="every IPv4 address is that alone"),
        pytest.param("[::1]:0", [False, True], id="one address is that alone"),
    ],
)
def test_a_place_is_reached_by_its_families(place: str, reached: list[bool]) -> None:
    assert asyncio.run(_reached(place, "127.0.0.1", "::1")) == reached


@pytest.mark.parametrize("host", ["127.0.0.1", "[::]"])
def test_a_place_that_is_taken_is_one_clear_line(host: str) -> None:
    family = socket.AF_INET6 if host == "[::]" else socket.AF_INET
    with socket.socket(family) as taken:
        taken.bind((host.strip("[]"), 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at .*:{port}: .*see http"):
            asyncio.run(_reached(f"{host}:{port}"))


_UNFINISHED = b"GET / HTTP/1.1\r\nHost: x\r\nX-More: "


def _crowd(port: int, number: int, said: bytes) -> int:
    """Let so many say *said*, one after the other, while others ask; return how many are still heard at the end."""
    with ExitStack() as stack:
        crowd = []
        for at in range(number):
            crowd.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)))
            crowd[-1].sendall(said)
            if at % 32 == 31:  # fewer than may wait to be welcomed
                assert _answers("127.0.0.1", port), "whoever waits keeps nobody out"
        assert _answers("127.0.0.1", port)  # those that came at one moment have been counted
        return sum(1 for each in crowd if _is_open(each))


def _is_open(sock: socket.socket) -> bool:
    sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
    try:
        return bool(sock.recv(1))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_who_says_nothing_to_the_end_makes_room_for_those_who_come_later() -> None:
    async def heard() -> int:
        runner = server.runner_of(web.Application())
        try:
            port = int((await listen(runner, "127.0.0.1:0")).rpartition(":")[2])
            return await asyncio.to_thread(_crowd, port, 3 * MOST_CONNECTIONS, _UNFINISHED)
        finally:
            await runner.cleanup()

    assert 0 < asyncio.run(heard()) <= MOST_CONNECTIONS


def test_of_headers_that_do_not_end_little_is_kept_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def answer() -> bytes:
        runner = server.runner_of(web.Application())
        try:
            port = int((await listen(runner, "127.0.0.1:0")).rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 4000) for n in range(40)))
            found = await asyncio.wait_for(reader.readline(), 30)
            writer.close()
            return found
        finally:
            await runner.cleanup()

    assert asyncio.run(answer()).startswith(b"HTTP/1.0 400 ")
    assert not caplog.records
