"""What a person sees and does, in the words of the tests."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from playwright.sync_api import Browser, Locator, Page, Request, expect

expect.set_options(timeout=20_000)

Scheme = Literal["light", "dark"]


class Screen:
    """One tab that looks at the agent's page, and notes what went wrong in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("dialog", lambda dialog: self.complaints.append(f"a dialog: {dialog.message}"))
        page.on("request", self._note)

    def _hear(self, kind: str, text: str) -> None:
        # While the agent is away Chromium itself says that it could not be reached; the page says it as well.
        if kind in ("error", "warning") and "ERR_CONNECTION_REFUSED" not in text and "400 (Bad Request)" not in text:
            self.complaints.append(text)

    def _note(self, request: Request) -> None:
        self.requests.append(request.url)

    def go(self, link: str) -> None:
        """Open a link of the page, and wait until it shows what the agent says."""
        self.page.goto("about:blank")
        self.page.goto(self.url + link)
        self.wait_for_a_look()

    def wait_for_a_look(self, number: int = 1) -> None:
        """Wait until the page has asked the agent, *number* times more."""
        looks = self.page.locator(".live")
        before = int(looks.get_attribute("data-looks") or 0) if number > 1 else 0
        expect(looks).to_have_attribute("data-looks", _at_least(before + number))

    def has(self, text: str) -> None:
        """Wait until the text is somewhere in the view."""
        expect(self.page.locator("main")).to_contain_text(text)

    def rows(self, table: str) -> Locator:
        """Return the rows of the table with this caption."""
        return self.page.get_by_role("region", name=table, exact=True).locator("tbody tr")

    def column(self, table: str, title: str) -> list[str]:
        """Return the texts of a column of the table."""
        heads = self.page.get_by_role("region", name=table, exact=True).locator("thead th").all_inner_texts()
        plain = [head.strip(" ▲▼") for head in heads]
        number = plain.index(title) + 1
        return self.rows(table).locator(f"td:nth-child({number})").all_inner_texts()


def _at_least(number: int) -> "re.Pattern[str]":
    """Return a pattern of the numbers from *number* to 99999: tests are over long before."""
    return re.compile("|".join(map(str, range(number, number + 600))))


@contextmanager
def looking(browser: Browser, url: str, scheme: Scheme = "light", height: int = 900) -> Iterator[Screen]:
    """Open a tab with a profile of its own; afterwards nothing may have gone wrong in it."""
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": 1320, "height": height}, accept_downloads=True
    )
    try:
        screen = Screen(context.new_page(), url)
        yield screen
        assert screen.complaints == []
    finally:
        context.close()
