"""What `nodeagent wait` is told, and what it makes of that."""

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from socket import SOCK_DGRAM
from subprocess import run
from threading import Thread
from unittest.mock import Mock

import pytest

from nodeagent.agent.facts import Facts
from nodeagent.agent.pod import Pod, Source, Stage
from nodeagent.agent.policies import Policies
from nodeagent.agent.queue import Queue
from nodeagent.agent.roster import Roster
from nodeagent.model import PodKey, PodManifest, Snapshot
from nodeagent.policy import Configuration
from nodeagent.web.asking import Asked, answer, listen
from nodeagent.web.question import LENGTH, NOT_YET, QUESTION

ADDRESS = ip_address("10.244.0.7")


@pytest.fixture
def roster() -> Roster:
    found = Roster(Policies(Configuration()), Queue[PodKey](lambda: 0.0), Facts())
    manifest = PodManifest("web", uid="1", annotations={"nodeagent.io/intercept": "enabled"}, pod_ips=(ADDRESS,))
    found.update(Source.CLUSTER, Snapshot({PodKey.of(manifest): manifest}))
    return found


def only(roster: Roster) -> Pod:
    (pod,) = roster
    return pod


def test_rules_stand_when_they_were_found_in_order(roster: Roster) -> None:
    pod = only(roster)
    assert answer(roster, ADDRESS).startswith("not yet: pending")
    pod.stage, pod.ruleset_id = Stage.INTERCEPTED, "abc"
    assert answer(roster, ADDRESS).startswith("not yet")
    pod.in_sync = True
    assert answer(roster, ADDRESS) == "stands: abc"
    pod.retiring = True
    assert answer(roster, ADDRESS).startswith("not yet: no pod of this node")


def test_a_pod_that_nothing_is_programmed_for_need_not_wait(roster: Roster) -> None:
    pod = only(roster)
    pod.stage, pod.detail = Stage.OBSERVED, "mode observe"
    assert answer(roster, ADDRESS) == "nothing: mode observe"
    pod.stage = Stage.SKIPPED
    assert answer(roster, ADDRESS).startswith("nothing")
    pod.source = Source.RUNTIME  # nobody knows yet what the API server will say of it
    assert answer(roster, ADDRESS).startswith("not yet")


def test_who_is_no_pod_of_this_node_is_told_nothing_of_others(roster: Roster) -> None:
    assert answer(roster, ip_address("10.244.0.8")) == "not yet: no pod of this node is known by the address 10.244.0.8"


@pytest.mark.parametrize(("place", "asked"), [("0.0.0.0:0", "127.0.0.7"), ("[::]:0", "::1"), ("[::]:0", "127.0.0.7")])
def test_the_answer_comes_from_the_address_that_was_asked(roster: Roster, place: str, asked: str) -> None:
    """A node has several, and who asked one of them takes no answer from another."""

    async def ask() -> str:
        answering = listen(Mock(roster=roster), place)
        assert answering
        with closing(answering), socket.socket(socket.AF_INET6 if ":" in asked else socket.AF_INET, SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
            sock.connect((asked, answering.port))
            sock.send(QUESTION.ljust(LENGTH, b"\0"))
            async with asyncio.timeout(30):
                return (await asyncio.get_running_loop().sock_recv(sock, LENGTH)).decode()

    assert asyncio.run(ask()).startswith(NOT_YET)


def test_answers_that_the_kernel_does_not_take_are_not_kept(roster: Roster) -> None:
    """Who asks in the name of addresses that nobody has would fill our memory, and have all others wait for minutes."""
    sent: list[bytes] = []

    async def ask() -> None:
        done = asyncio.Event()

        def hear(*_: int) -> tuple[bytes, list[object], int, tuple[str, int]]:
            return QUESTION.ljust(LENGTH, b"\0"), [], 0, (str(ADDRESS), ours.recv(1)[0])

        def take(data: list[bytes], _info: object, _flags: int, peer: tuple[str, int]) -> None:
            if peer[1] == 1:
                raise BlockingIOError
            sent.extend(data)
            done.set()

        ours, theirs = socket.socketpair()
        sock = Mock(fileno=ours.fileno, close=ours.close, recvmsg=hear, sendmsg=take)
        with theirs, closing(Asked(roster, sock)):
            theirs.send(b"\1\2")
            async with asyncio.timeout(30):
                await done.wait()

    asyncio.run(ask())
    assert sent == [b"not yet: pending"]


@pytest.fixture
def agent() -> Iterator[socket.socket]:
    """Return a socket that plays the agent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(30)
        yield sock


def wait(agent: socket.socket, *options: str) -> tuple[int, str]:
    place = f"127.0.0.1:{agent.getsockname()[1]}"
    command = [sys.executable, "-m", "nodeagent", "wait", "--agent", place, *options]
    done = run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_it_asks_until_the_rules_stand(agent: socket.socket) -> None:
    questions = []

    def play() -> None:
        for said in (f"{NOT_YET}: pending", f"{NOT_YET}: pending", "stands: abc"):
            question, peer = agent.recvfrom(2048)
            questions.append(question)
            agent.sendto(said.encode(), peer)

    thread = Thread(target=play)
    thread.start()
    assert wait(agent) == (0, "stands: abc\n")
    thread.join()
    assert questions == [QUESTION.ljust(LENGTH, b"\0")] * 3


def test_it_ends_when_time_is_over(agent: socket.socket) -> None:
    assert wait(agent, "--timeout", "0.2")[0] == 5
    agent.close()
    assert wait_closed()[0] == 5


def wait_closed() -> tuple[int, str]:
    done = run(
        [sys.executable, "-m", "nodeagent", "wait", "--agent", "127.0.0.1:9", "--timeout", "0.2"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_it_has_to_be_told_where_the_agent_is() -> None:
    command = [sys.executable, "-m", "nodeagent", "wait"]
    done = run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin"})
    assert done.returncode == 2
    assert "HOST_IP" in done.stderr
