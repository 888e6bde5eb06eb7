"""The page outlives the agent: it says that nobody answers, and goes on when somebody does."""

import pytest
from playwright.sync_api import expect

from tests.browser.screen import Screen
from tests.browser.stage import Stage, Talk
from tests.lab import Dial

pytestmark = pytest.mark.browser


def test_an_agent_that_restarts_is_missed_and_found_again(screen: Screen, stage: Stage) -> None:
    screen.go("#/flows?search=203.0.113.160")
    stage.house("api").say(Talk(Dial("203.0.113.160", 443), 300, 2))
    expect(screen.rows("Flows of this node")).to_have_count(1)
    assert stage.agent.stop() == 0
    banner = screen.page.locator(".banner")
    expect(banner).to_contain_text("The agent does not answer.")
    expect(screen.rows("Flows of this node")).to_have_count(1)
    stage.agent.start()
    expect(banner).to_be_hidden()
    stage.settle()
    stage.house("api").say(Talk(Dial("203.0.113.160", 443), 300))
    expect(screen.rows("Flows of this node").locator("td:nth-child(8)")).to_have_text("3")
