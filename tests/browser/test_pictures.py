"""The README's pictures, of the page and of ``top`` on a terminal; ``make pictures`` keeps them in docs/pictures."""

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser

from tests.browser.drawn import draw
from tests.browser.screen import Scheme, looking
from tests.browser.stage import Stage
from tests.lab.agent import NODEAGENT
from tests.lab.terminal import Terminal

pytestmark = pytest.mark.browser

WEB = "shop/web-7d4b9c6f5-x2x8q"
VIEWS = {
    "page-overview": ("", 1270),
    "page-pod": (f"#/pods/{WEB}", 1130),
    "page-explain": (f"#/explain?pod={quote(WEB, safe='')}&to=198.51.100.20%3A443", 800),
}
LARGEST = 300_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", VIEWS)
def test_the_page_is_worth_a_picture(name: str, scheme: Scheme, browser: Browser, stage: Stage, pictures: Path) -> None:
    link, height = VIEWS[name]
    path = pictures / f"{name}-{scheme}.png"
    with looking(browser, stage.url, scheme, height) as screen:
        screen.go(link)
        screen.page.screenshot(path=path, animations="disabled")
        red, green, blue = screen.page.evaluate(
            "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        )
    assert (red + green + blue > 600) is (scheme == "light")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size < LARGEST


def test_top_is_worth_a_picture(browser: Browser, stage: Stage, pictures: Path) -> None:
    path = pictures / "top.png"
    command = [*stage.place.enter, "--", *NODEAGENT, "top", "--interval", "1"]
    with Terminal(command, lines=22, columns=132) as terminal:
        terminal.wait("impersonated_proxy")
        for house in stage.houses:
            house.say(house.actor.says[0])
        # The rates of what was just said, in the order of the rates.
        text = terminal.wait(lambda text: re.search(r"[1-9][0-9.]* KiB/s", text))
        draw(terminal, browser, path)
        terminal.type("q")
        assert terminal.ends() == 0
    assert "203.0.113.10" in text
    assert 10_000 < path.stat().st_size < LARGEST
