"""Where the listeners can be reached."""

import asyncio
import http.client
import socket
from http import HTTPStatus

import pytest
from aiohttp import web

from nodeagent.errors import InputError
from nodeagent.web.server import listen


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
