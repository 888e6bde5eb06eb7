"""A pod's page holds our counts beside those of its own Envoy, a real one, and says what Envoy cannot see."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.screen import Scheme, Screen, looking
from tests.browser.stage import Actor, House, Stage
from tests.lab import Dial, LoadPlan
from tests.lab.envoy import RunningEnvoy

pytestmark = pytest.mark.browser

REFUSING = 4444
FAR, PARTNER, QUIC = Dial("203.0.113.10", 443), Dial("198.51.100.20", 443), Dial("203.0.113.10", 443, "udp")
ACTOR = Actor("shop", "checkout-5d9f7-pw2lk", {"excludeOutboundIPRanges": "@payments-partner"})
TABLE = "This pod's connections, and what its Envoy counts of them"
NONE = "\u2013"
MARKUP = "<img/src=x/onerror=alert(1)>"


@dataclass(frozen=True)
class Scene:
    """The pod and its Envoy."""

    house: House
    envoy: RunningEnvoy

    def talk(self, times: int) -> None:
        """Dial what is intercepted, what is intercepted in vain, and what bypasses; *times* each, UDP once."""
        targets = tuple((dial.dst, port) for dial in (FAR, PARTNER) for port in (443, REFUSING))
        with self.house.lab.load(LoadPlan(targets, connections=len(targets) * times)) as load:
            assert len(load.report().records) == len(targets) * times
        self.house.lab.client.connect(replace(QUIC, cgroup=str(self.house.cgroups.app.path)))
        self.envoy.settle()


@pytest.fixture(scope="module")
def scene(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Let a pod with a real Envoy join the others, and talk."""
    folder = tmp_path_factory.mktemp("envoy")
    with stage.joined_by(ACTOR) as house, RunningEnvoy(house.lab, house.cgroups.sidecar, folder) as envoy:
        house.lab.refuse("tcp", REFUSING)
        made = Scene(house, envoy)
        made.talk(30)
        yield made


def opened(screen: Screen) -> None:
    screen.go(f"#/pods/{ACTOR.namespace}/{ACTOR.name}")
    screen.page.get_by_text("Put Envoy's own numbers beside ours").click()


def give(screen: Screen, statistics: str) -> None:
    screen.page.get_by_label("What Envoy prints at /stats").fill(statistics)
    screen.page.get_by_role("button", name="Compare").click()


def shown(screen: Screen) -> dict[str, tuple[str, ...]]:
    """Return what the table says, by the first line of its second column: we, Envoy's counter, Envoy, difference."""
    columns = [screen.column(TABLE, title) for title in ("We count", "Envoy's counter", "Envoy counts", "Difference")]
    names = [text.split("\n")[0] for text in screen.column(TABLE, "Connections")]
    return dict(zip(names, zip(*columns, strict=True), strict=True))


TAKEN, DIALLED, FAILED = (
    "listener.*.downstream_cx_total",
    "cluster.*.upstream_cx_total",
    "cluster.*.upstream_cx_connect_fail",
)
UNSEEN = "none: it cannot see them"


def test_before_anybody_asks_envoy_the_page_says_what_it_should_count_and_what_it_cannot_see(
    scene: Scene, screen: Screen
) -> None:
    opened(screen)
    counts = scene.envoy.counts()
    assert shown(screen) == {
        "Sent to the sidecar": (str(counts.accepted), TAKEN, NONE, NONE),
        "Dialled by the sidecar": (str(counts.upstream), DIALLED, NONE, NONE),
        "Of these, in vain": (NONE, FAILED, NONE, NONE),
        "Past it: excluded_cidr": ("60", UNSEEN, NONE, NONE),
        "Past it: non_tcp": ("1", UNSEEN, NONE, NONE),
    }
    assert counts.accepted == 60
    screen.has("curl --silent localhost:15000/stats")
    screen.has("--container istio-proxy")


def test_a_real_envoys_numbers_are_ours_connection_for_connection(
    scene: Scene, screen: Screen, stage: Stage, tmp_path: Path
) -> None:
    opened(screen)
    first = scene.envoy.counts()
    give(screen, scene.envoy.statistics())
    screen.has("they agree, connection for connection; 61 connections Envoy has no counter for.")
    assert shown(screen)["Sent to the sidecar"] == ("60", TAKEN, "60", "none")
    assert shown(screen)["Dialled by the sidecar"] == ("60", DIALLED, "60", "none")
    assert shown(screen)["Of these, in vain"] == (NONE, FAILED, str(first.refused), NONE)
    assert first.refused == 30

    # From here on: both grow by what is said next, whatever they had counted before; now as JSON, from a file.
    screen.page.get_by_role("button", name="Count from here on").click()
    assert shown(screen)["Sent to the sidecar"] == ("0", TAKEN, "0", "none")
    scene.talk(5)
    file = tmp_path / "stats.json"
    file.write_text(scene.envoy.statistics("json"))
    screen.page.get_by_label("or as a file").set_input_files(file)
    screen.has("they agree since the start you chose, connection for connection; 11 connections")
    assert shown(screen) == {
        "Sent to the sidecar": ("10", TAKEN, "10", "none"),
        "Dialled by the sidecar": ("10", DIALLED, "10", "none"),
        "Of these, in vain": (NONE, FAILED, "5", NONE),
        "Past it: excluded_cidr": ("10", UNSEEN, NONE, NONE),
        "Past it: non_tcp": ("1", UNSEEN, NONE, NONE),
    }

    # A listener that is none of the app's egress can be left out, and what differs is said.
    screen.page.get_by_text("Which of Envoy's listeners").click()
    screen.page.get_by_role("checkbox", name="0.0.0.0_15001").uncheck()
    screen.has("They differ since the start you chose.")
    assert shown(screen)["Sent to the sidecar"] == ("10", TAKEN, "0", "\u221210")
    screen.page.get_by_role("button", name="Forget Envoy's numbers").click()
    screen.wait_for_a_look(2)
    assert shown(screen)["Sent to the sidecar"] == ("70", TAKEN, NONE, NONE)
    # What was given stayed in the browser.
    assert {url.split("?")[0].removeprefix(stage.url) for url in screen.requests if url.startswith(stage.url)} <= {
        *("", "page.js", "page.css", "icon.svg", "api/v1/words", "api/v1/overview", "api/v1/flows"),
        f"api/v1/pods/{ACTOR.namespace}/{ACTOR.name}",
    }


@pytest.mark.usefixtures("scene")
def test_what_is_no_statistic_of_envoys_is_refused_and_stays_text(screen: Screen) -> None:
    opened(screen)
    refusal = screen.page.locator("[role=alert]:visible")
    for given, words in {
        "": "No statistic is in it.",
        "{": "It begins like JSON and is none",
        "cluster.PassthroughCluster.upstream_cx_total: 3": "Meshes often leave listeners out of the statistics",
    }.items():
        give(screen, given)
        expect(refusal).to_contain_text(words)
    lines = (
        f"listener.{MARKUP}.downstream_cx_total: 7",
        f"listener.{MARKUP}.worker_0.downstream_cx_total: 7",
        "listener.admin.downstream_cx_total: 9",
        "listener.0.0.0.0_15006.downstream_cx_total: 11",
        "cluster.outbound|443||far.example.upstream_cx_total: 4",
        "cluster.inbound|8080||.upstream_cx_total: 5",
        "cluster.xds-grpc.upstream_cx_total: 1",
    )
    give(screen, "\n".join(lines))
    expect(refusal).to_have_count(0)
    screen.has("They differ.")
    assert shown(screen)["Sent to the sidecar"][2] == "7"
    assert shown(screen)["Dialled by the sidecar"][2] == "4"
    screen.page.get_by_text("Which of Envoy's listeners").click()
    expect(screen.page.get_by_role("checkbox", name=MARKUP)).to_be_checked()
    assert screen.page.locator("main img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_comparison_is_worth_a_picture(
    scheme: Scheme, scene: Scene, browser: Browser, stage: Stage, pictures: Path
) -> None:
    path = pictures / f"page-envoy-{scheme}.png"
    with looking(browser, stage.url, scheme, height=630) as screen:
        opened(screen)
        give(screen, scene.envoy.statistics())
        screen.has("connection for connection")
        screen.page.get_by_role("heading", name="Beside its Envoy").evaluate(
            "(it) => window.scrollTo(0, it.offsetTop - 80)"
        )
        screen.page.screenshot(path=path, animations="disabled")
    assert path.stat().st_size > 10_000
