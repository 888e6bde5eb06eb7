"""The README's pictures: taken of the real page, light and dark; ``make pictures`` keeps them in docs/pictures."""

from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser

from tests.browser.screen import Scheme, looking
from tests.browser.stage import Stage

pytestmark = pytest.mark.browser

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
WEB = "shop/web-7d4b9c6f5-x2x8q"
VIEWS = {
    "page-overview": ("", 1270),
    "page-pod": (f"#/pods/{WEB}", 1130),
    "page-explain": (f"#/explain?pod={quote(WEB, safe='')}&to=198.51.100.20%3A443", 800),
}
LARGEST = 300_000


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return where pictures go: the README's place, if that was asked for."""
    kept: Path = PICTURES if request.config.getoption("--update-pictures") else tmp_path
    kept.mkdir(parents=True, exist_ok=True)
    return kept


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", VIEWS)
def test_the_page_is_worth_a_picture(name: str, scheme: Scheme, browser: Browser, stage: Stage, folder: Path) -> None:
    link, height = VIEWS[name]
    path = folder / f"{name}-{scheme}.png"
    with looking(browser, stage.url, scheme, height) as screen:
        screen.go(link)
        screen.page.screenshot(path=path, animations="disabled")
        red, green, blue = screen.page.evaluate(
            "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        )
    assert (red + green + blue > 600) is (scheme == "light")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size < LARGEST
