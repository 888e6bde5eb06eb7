"""``top``, ``flows --follow`` and ``status --watch``: a real agent, real traffic, and a real terminal to look at."""

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from nodeagent.bpf.counting import detach
from tests.lab import Dial, PodCgroups, TestCgroup, Topology
from tests.lab.agent import NODEAGENT, Manifest, RunningAgent
from tests.lab.terminal import Terminal

pytestmark = [pytest.mark.kernel, pytest.mark.exhaustive]

UID = "3a7be2c1-uid"
FAR, EXCLUDED, QUIC = Dial("203.0.113.10", 443), Dial("198.51.100.20", 443), Dial("203.0.113.10", 443, "udp")
FAST = ("--interval", "0.2")
DOWN, UP = "\x1bOB", "\x1bOA"  # arrows, as a terminal sends them to a program that asked for its keypad


@dataclass(frozen=True)
class Scene:
    """A pod with flows of three kinds, and an agent that listens at its own ports, and so is found again."""

    lab: Topology
    agent: RunningAgent

    def command(self, *words: str) -> list[str]:
        """Return a command line that reaches the agent."""
        return [*self.lab.world.enter, "--", *NODEAGENT, *words]

    def on_terminal(self, *words: str, columns: int = 120, environment: dict[str, str] | None = None) -> Terminal:
        """Run a command on a terminal."""
        return Terminal(self.command(*words), columns=columns, environment=environment)

    def flows(self) -> list[dict[str, Any]]:
        """Return what `flows -o json` prints."""
        done = subprocess.run(self.command("flows", "-o", "json"), capture_output=True, text=True, check=True)
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def dial(self, to: Dial, times: int = 1) -> None:
        """Dial so often."""
        for _ in range(times):
            self.lab.client.connect(to)

    def restart(self) -> None:
        """Kill the agent, and start another."""
        self.agent.kill()
        self.agent.start()


@pytest.fixture(scope="module")
def module_scene(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Iterator[Scene]:
    """Set it up, once for all tests of this file."""
    with TestCgroup() as node:
        cgroups = PodCgroups(node.child("kubepods"), UID)
        with (
            Topology(cgroups=cgroups) as lab,
            RunningAgent(tmp_path_factory.mktemp("live"), node.path, programs, within=lab.world) as agent,
        ):
            scene = Scene(lab, agent)
            containers = {"app": "app", "sidecar": "istio-proxy"}
            annotations = {"excludeOutboundIPRanges": "198.51.100.0/24"}
            agent.wait(agent.counts)
            agent.add(Manifest("web", lab.pod.path, annotations, UID, containers))
            agent.settle()
            agent.wait(lambda: agent.pod("web")["counted_by"])
            scene.dial(FAR, 5)
            scene.dial(EXCLUDED, 3)
            scene.dial(QUIC)
            yield scene
    detach()


@pytest.fixture
def scene(module_scene: Scene) -> Scene:
    """Return the scene, with an agent that runs."""
    if not module_scene.agent.api_at:
        module_scene.agent.start()
    return module_scene


def addresses(text: str) -> list[str]:
    """Return the destinations that a screen shows, from top to bottom, with their protocols; rows that are whole."""
    rows = re.finditer(r"^default/web +app +(\S+) +\d+ +(tcp|udp) ", text, re.MULTILINE)
    return [f"{row[1]}/{row[2]}" for row in rows]


ALL = {"203.0.113.10/tcp", "203.0.113.10/udp", "198.51.100.20/tcp"}


# -- top ------------------------------------------------------------------------------------------


def test_top_sorts_filters_and_quits_as_it_found_the_terminal(scene: Scene) -> None:
    with scene.on_terminal("top", *FAST) as terminal:
        terminal.wait(lambda text: set(addresses(text)) == ALL)
        terminal.type("s")
        terminal.wait("by bytes, largest first")
        by_bytes = addresses(terminal.wait(lambda text: set(addresses(text)) == ALL))
        terminal.type("r")
        terminal.wait(lambda text: "by bytes, smallest first" in text and addresses(text) == by_bytes[::-1])
        terminal.type("/198.51\r")
        terminal.wait(lambda text: "containing '198.51'" in text and addresses(text) == ["198.51.100.20/tcp"])
        terminal.type("\x1b")
        terminal.wait(lambda text: set(addresses(text)) == ALL)
        terminal.type("ff")
        bypassed = {"203.0.113.10/udp", "198.51.100.20/tcp"}
        terminal.wait(lambda text: "bypassed only" in text and set(addresses(text)) == bypassed and "non_tcp" in text)
        terminal.type("?")
        terminal.wait("reverse the order")
        terminal.type("x")
        terminal.wait("bypassed only")
        terminal.type("q")
        assert terminal.ends() == 0
        assert terminal.attributes == terminal.before


def test_top_is_live_and_stands_still_while_it_is_paused(scene: Scene) -> None:
    def connections(text: str) -> int:
        found = re.search(r"198\.51\.100\.20 .* excluded_cidr +(\d+) ", text)
        return int(found[1]) if found else -1  # a screen that is being drawn

    with scene.on_terminal("top", *FAST) as terminal:
        before = connections(terminal.wait(lambda text: connections(text) > 0))
        scene.dial(EXCLUDED)
        terminal.wait(lambda text: connections(text) == before + 1)
        terminal.type("p")
        terminal.wait("PAUSED")
        scene.dial(EXCLUDED)
        seen = len(scene.flows())  # the agent has it by now
        terminal.type("/no such thing\r")
        terminal.wait("none of 0")
        terminal.type("\x1b")
        assert connections(terminal.wait("198.51.100.20")) == before + 1
        assert seen == len(ALL)
        terminal.type(" ")
        terminal.wait(lambda text: "PAUSED" not in text and connections(text) == before + 2)


def test_top_fits_each_size_of_the_terminal(scene: Scene) -> None:
    with scene.on_terminal("top", *FAST) as terminal:
        terminal.wait("RECEIVED")
        terminal.resize(24, 60)
        text = terminal.wait(lambda text: "CONTAINER" not in text and "excluded_cidr" in text)
        assert "198.51.100.20" in text
        terminal.type("s")  # by bytes, which stay
        terminal.wait("by bytes")
        terminal.resize(5, 60)
        terminal.wait(lambda text: len(addresses_of_narrow(text)) == 1)
        shown = addresses_of_narrow(terminal.text())
        terminal.type(DOWN)
        terminal.wait(lambda text: len(addresses_of_narrow(text)) == 1 and addresses_of_narrow(text) != shown)
        terminal.type(UP)
        terminal.wait(lambda text: addresses_of_narrow(text) == shown)
        terminal.resize(1, 1)
        terminal.resize(24, 120)
        terminal.wait(lambda text: set(addresses(text)) == ALL)


def addresses_of_narrow(text: str) -> list[str]:
    """Return the rows of a narrow screen, without their numbers."""
    return [
        line.partition(" bypassed")[0].partition(" intercepted")[0].strip()
        for line in text.splitlines()
        if "default/web" in line
    ]


def test_top_waits_for_an_agent_that_restarts(scene: Scene) -> None:
    with scene.on_terminal("top", *FAST) as terminal:
        terminal.wait("198.51.100.20")
        scene.agent.kill()
        text = terminal.wait("no agent answers")
        assert "198.51.100.20" in text  # the last that it said stays
        scene.agent.start()
        scene.agent.settle()
        terminal.wait(lambda text: "no agent answers" not in text and set(addresses(text)) == ALL)
        terminal.type("q")
        assert terminal.ends() == 0


def test_top_says_at_once_that_nobody_answers(scene: Scene) -> None:
    with scene.on_terminal("top", "--api", "127.0.0.1:9") as terminal:
        assert terminal.ends() == 5
        assert "no agent answers at 127.0.0.1:9" in terminal.text()
        assert b"\x1b[?1049h" not in terminal.raw


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_terminal_is_given_back_whatever_ends_top(scene: Scene, number: signal.Signals) -> None:
    with scene.on_terminal("top", *FAST) as terminal:
        terminal.wait("198.51.100.20")
        assert terminal.attributes != terminal.before
        if number is signal.SIGINT:
            terminal.type("\x03")
        else:
            terminal.signal(number)
        assert terminal.ends() == (0 if number is signal.SIGINT else 128 + number)
        assert terminal.attributes == terminal.before


@pytest.mark.parametrize("command", [("top",), ("status", "--watch")], ids=["top", "status"])
def test_a_terminal_that_goes_away_takes_its_program_along(scene: Scene, command: tuple[str, ...]) -> None:
    with scene.on_terminal(*command, *FAST) as terminal:
        terminal.wait("default/web")
        terminal.hang_up()
        assert terminal.ends() in (0, 128 + signal.SIGHUP)


@pytest.mark.parametrize(
    ("words", "environment"),
    [(("--once",), {}), ((), {"TERM": "dumb"}), ((), {"TERM": "no-such-terminal"}), (("-o", "json"), {})],
    ids=["--once", "on a dumb terminal", "on an unknown terminal", "as JSON"],
)
def test_top_prints_once_and_draws_nothing(scene: Scene, words: tuple[str, ...], environment: dict[str, str]) -> None:
    with scene.on_terminal("top", *words, environment=environment) as terminal:
        assert terminal.ends() == 0
        assert b"198.51.100.20" in terminal.raw
        assert b"\x1b[?1049h" not in terminal.raw
        assert terminal.attributes == terminal.before


def test_top_prints_plain_text_where_there_is_no_terminal(scene: Scene) -> None:
    done = subprocess.run(scene.command("top"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "198.51.100.20" in done.stdout
    assert "\x1b" not in done.stdout


def test_no_color_means_none(scene: Scene) -> None:
    coloured = b"\x1b[33m"  # yellow: bypassed, as configured
    for environment, expected in (({}, True), ({"NO_COLOR": "1"}, False)):
        with scene.on_terminal("top", *FAST, environment=environment) as terminal:
            terminal.wait("198.51.100.20")
            assert (coloured in terminal.raw) is expected


# -- flows --follow ---------------------------------------------------------------------------------


class Followed:
    """What a command that goes on has said so far."""

    def __init__(self, out: IO[str], process: "subprocess.Popen[str]") -> None:
        self._out, self.process = out, process

    def line(self) -> str:
        """Return the next line, when it comes."""
        return self._out.readline()

    def json(self) -> dict[str, Any]:
        """Return the next line's object."""
        found: dict[str, Any] = json.loads(self.line())
        return found


@contextmanager
def following(scene: Scene, *words: str) -> Iterator[Followed]:
    """Run a command that goes on."""
    pipe = subprocess.PIPE
    with subprocess.Popen(scene.command(*words, *FAST), stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout
        try:
            yield Followed(process.stdout, process)
        finally:
            process.kill()


def test_following_tells_what_is_new_and_the_totals_with_it(scene: Scene) -> None:
    before = {flow["reason"]: flow for flow in scene.flows()}
    with following(scene, "flows", "--follow", "--since", "1h", "-o", "json") as followed:
        early = [followed.json() for _ in ALL]
        assert {line["reason"] for line in early} == set(before)
        assert all(line["new_connections"] is None for line in early)
        scene.dial(EXCLUDED, 2)
        new, line = 0, {}
        while new < 2:
            line = followed.json()
            assert line["reason"] == "excluded_cidr"
            new += line["new_connections"]
    assert new == 2
    [now] = [flow for flow in scene.flows() if flow["reason"] == "excluded_cidr"]
    assert {name: line[name] for name in now} == now
    assert now["connections"] == before["excluded_cidr"]["connections"] + 2


def test_following_goes_on_over_an_agent_that_is_killed_and_loses_nothing(scene: Scene) -> None:
    with following(scene, "flows", "--follow", "--reason", "excluded_cidr", "-o", "json", "--since", "1h") as followed:
        first = followed.json()
        scene.agent.kill()
        assert followed.process.stderr
        assert "waiting for it" in followed.process.stderr.readline()
        scene.dial(EXCLUDED, 4)
        scene.agent.start()
        assert "the agent answers again" in followed.process.stderr.readline()
        new, line = 0, first
        while new < 4:
            line = followed.json()
            new += line["new_connections"]
    assert new == 4
    assert line["connections"] == first["connections"] + 4


def test_following_ends_when_nobody_reads(scene: Scene) -> None:
    with following(scene, "flows", "--follow", "--since", "1h") as followed:
        assert followed.line().split()[:2] == ["TIME", "POD"]
        assert followed.process.stdout
        followed.process.stdout.close()
        assert followed.process.wait(60) == 0


def test_following_as_csv_has_one_header(scene: Scene) -> None:
    with following(scene, "flows", "--follow", "-o", "csv") as followed:
        assert followed.line().startswith("time,namespace,pod,")
        for _ in range(2):
            scene.dial(QUIC)
            assert ",non_tcp," in followed.line()


def test_since_leaves_out_what_was_quiet(scene: Scene) -> None:
    def reasons(*words: str) -> set[str]:
        done = subprocess.run(scene.command("flows", "-o", "json", *words), capture_output=True, text=True, check=True)
        return {flow["reason"] for flow in json.loads(done.stdout)}

    def is_quiet() -> bool:
        scene.dial(EXCLUDED)
        return reasons("--since", "10s") == {"excluded_cidr"}

    scene.agent.wait(is_quiet)
    assert reasons("--since", "1h") == {"included", "excluded_cidr", "non_tcp"}


def test_following_on_a_terminal_is_lines_that_stay(scene: Scene) -> None:
    with scene.on_terminal("flows", "--follow", *FAST, columns=160) as terminal:
        terminal.wait("REASON")
        scene.dial(EXCLUDED)
        terminal.wait("+1")
        terminal.type("\x03")
        assert terminal.ends() == 0
        assert b"\x1b[?1049h" not in terminal.raw


# -- status --watch ------------------------------------------------------------------------------------


def edited(scene: Scene, ports: str) -> Manifest:
    containers = {"app": "app", "sidecar": "istio-proxy"}
    annotations = {"excludeOutboundIPRanges": "198.51.100.0/24", "excludeOutboundPorts": ports}
    return Manifest("web", scene.lab.pod.path, annotations, UID, containers)


def test_watching_the_status_tells_each_change_once(scene: Scene) -> None:
    with following(scene, "status", "--watch", "-o", "json") as followed:
        first = followed.json()["pods"][0]
        scene.agent.add(edited(scene, "3306"))
        epoch = first["epoch"]
        while not (epoch > first["epoch"] and epoch % 2 == 0):
            epoch = followed.json()["pods"][0]["epoch"]


def test_watching_the_status_on_a_terminal_survives_the_agent(scene: Scene) -> None:
    with scene.on_terminal("status", "--watch", *FAST, columns=160) as terminal:
        terminal.wait("1 pods, 1 in sync")
        scene.agent.kill()
        terminal.wait("no agent answers")
        scene.agent.start()
        terminal.wait(lambda text: "no agent answers" not in text and "1 pods, 1 in sync" in text)
        terminal.type("q")
        assert terminal.ends() == 0
        assert terminal.attributes == terminal.before


BAD: dict[str, Callable[[], tuple[str, ...]]] = {
    "an interval that is too short": lambda: ("top", "--interval", "0.01"),
    "an interval that never ends": lambda: ("flows", "--follow", "--interval", "inf"),
    "no time at all": lambda: ("flows", "--since", "yesterday"),
    "a time that is too long": lambda: ("flows", "--since", "31d"),
}


@pytest.mark.parametrize("words", BAD.values(), ids=BAD)
def test_what_makes_no_sense_is_refused(scene: Scene, words: Callable[[], tuple[str, ...]]) -> None:
    done = subprocess.run(scene.command(*words()), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
