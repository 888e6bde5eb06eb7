"""Ten thousand flows: what the browser gets, and holds, is bounded; every one of them can be reached."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Playwright, expect

from tests.browser.chromium import chromium
from tests.browser.crowd import FLOWS, crowded, destination
from tests.browser.screen import Screen, looking
from tests.browser.stage import Stage

pytestmark = pytest.mark.browser

TABLE = "Flows of this node"
MOST_ELEMENTS = 4000
LARGEST_ANSWER = 100_000


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Iterator[Stage]:
    """Let one pod have ten thousand flows."""
    with crowded(tmp_path_factory.mktemp("crowd"), programs) as stage:
        yield stage


@pytest.fixture(scope="module")
def tab(playwright: Playwright, crowd: Stage) -> Iterator[Screen]:
    with chromium(playwright, crowd.place) as browser, looking(browser, crowd.url) as screen:
        yield screen


@pytest.mark.parametrize("link", ["", "#/flows", "#/flows?page=50", "#/pods", "#/pods/shop/crawler"])
def test_a_view_of_ten_thousand_flows_is_as_small_as_one_of_a_hundred(link: str, tab: Screen) -> None:
    sizes: dict[str, int] = {}
    tab.page.on("response", lambda answer: sizes.update({answer.url: int(answer.headers.get("content-length", 0))}))
    tab.go(link)
    tab.wait_for_a_look(2)
    assert tab.page.evaluate("() => document.querySelectorAll('*').length") < MOST_ELEMENTS
    answers = {url: size for url, size in sizes.items() if "/api/" in url}
    assert answers
    assert max(answers.values()) < LARGEST_ANSWER


def test_every_flow_can_be_reached_page_by_page(tab: Screen) -> None:
    tab.go("#/flows?protocol=udp")
    expect(tab.rows(TABLE)).to_have_count(100)
    tab.has("1\u2013100 of 10,000 flows")
    tab.page.get_by_role("link", name="Next").click()
    tab.has("101\u2013200 of 10,000 flows")
    tab.page.get_by_role("link", name="Last").click()
    tab.has("9,901\u201310,000 of 10,000 flows")
    assert tab.page.url.endswith("page=100")
    expect(tab.rows(TABLE)).to_have_count(100)
    address, port = destination(7777)
    tab.page.get_by_role("searchbox", name="Search").fill(f"{address}:{port}")
    expect(tab.rows(TABLE)).to_have_count(1)
    tab.has("1 flow")


def test_the_agent_sorts_all_of_them(tab: Screen) -> None:
    tab.go("#/flows?sort=-bytes")
    assert tab.column(TABLE, "Sent")[:10] == ["1.0 KiB"] * 10
    tab.go("#/flows?sort=bytes&protocol=udp")
    assert tab.column(TABLE, "Sent") == [f"{28 + size} B" for size in range(1, 11) for _ in range(10)]


def test_the_picture_folds_them_and_leaves_nothing_out(tab: Screen, crowd: Stage) -> None:
    tab.go("")
    sums = crowd.agent.ask("/api/v1/overview")["sums"]
    assert len(sums["links"]) <= 15
    assert sum(link["bytes"] for link in sums["links"]) == sum(why["bytes"] for why in sums["egress"])
    expect(tab.page.locator(".picture .ribbon")).to_have_count(len(sums["links"]))
    expect(tab.page.locator(".picture")).to_contain_text("other destinations")


def test_a_file_holds_all_of_them(tab: Screen) -> None:
    tab.go("#/flows?protocol=udp")
    with tab.page.expect_download() as started:
        tab.page.get_by_role("link", name="CSV").click()
    lines = started.value.path().read_text().splitlines()
    assert len(lines) == 1 + FLOWS
