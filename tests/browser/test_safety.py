"""The page trusts nobody: what pods' owners write stays text, other pages are refused, nothing comes from elsewhere."""

import json
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.screen import Scheme, Screen, looking
from tests.browser.stage import Stage
from tests.lab.agent import Manifest

pytestmark = pytest.mark.browser

AXE = Path(__file__).parents[2] / "nodeagent/web/page/node_modules/axe-core/axe.min.js"
WEB = "shop/web-7d4b9c6f5-x2x8q"
VIEWS = {
    "overview": "",
    "flows": "#/flows",
    "flows, filtered": "#/flows?destination=cache&kind=configured",
    "pods": "#/pods",
    "a pod": f"#/pods/{WEB}",
    "explain": "#/explain",
    "an explanation": f"#/explain?pod={quote(WEB)}&to=198.51.100.20%3A443",
    "configuration": "#/config",
    "no such pod": "#/pods/shop/nobody",
}
MARKUP = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_shuts_people_out(scheme: Scheme, browser: Browser, stage: Stage) -> None:
    with looking(browser, stage.url, scheme) as screen:
        for name, link in VIEWS.items():
            screen.go(link)
            for summary in screen.page.locator("summary:visible").all():
                summary.click()
            screen.page.evaluate(AXE.read_text())
            found = screen.page.evaluate("() => axe.run({resultTypes: ['violations']})")
            assert found["passes"], name
            told = [
                f"{each['id']} ({each['impact']}): {node['html']}"
                for each in found["violations"]
                for node in each["nodes"]
            ]
            assert told == [], name


def test_nothing_comes_from_elsewhere_and_every_view_is_without_complaint(screen: Screen, stage: Stage) -> None:
    for link in VIEWS.values():
        screen.go(link)
    hosts = {urlsplit(url).netloc for url in screen.requests if not url.startswith("about:")}
    assert hosts == {stage.agent.api_at}
    assert {urlsplit(url).path for url in screen.requests} >= {"/page.js", "/page.css", "/icon.svg", "/api/v1/overview"}


def test_what_a_pods_owner_writes_stays_text(screen: Screen, stage: Stage) -> None:
    stage.agent.add(Manifest("evil", stage.houses[0].lab.pod.path, {"excludeOutboundIPRanges": MARKUP}))
    named = {"kind": "Pod", "metadata": {"name": MARKUP}}
    stage.agent.write("named.json", json.dumps(named))
    stage.agent.write(f"{MARKUP.replace('/', '')}.json", "[")
    try:
        stage.agent.wait(lambda: stage.agent.pod("evil").get("rejected"))
        screen.go("")
        expect(screen.page.locator(".troubles")).to_contain_text("is not a Pod's name")
        expect(screen.page.locator(".troubles")).to_contain_text('<img src=x onerror="alert(1)">')
        for link in ("#/pods?search=evil", "#/pods/default/evil", f"#/pods/shop/{quote(MARKUP, safe='')}"):
            screen.go(link)
            screen.has("<img src=x onerror=")
        for hostile in (f"#/flows?destination={quote(MARKUP)}", f"#/explain?pod={quote(MARKUP)}&to={quote(MARKUP)}"):
            screen.go(hostile)
            assert screen.page.locator("main img, main script").count() == 0
    finally:
        for path in stage.agent.pods_dir.iterdir():
            if not path.name.startswith(tuple(house.actor.name for house in stage.houses)):
                path.unlink()
        stage.agent.wait(lambda: not stage.agent.pod("evil"))


def test_no_text_can_become_markup_or_code(screen: Screen) -> None:
    screen.go("")
    tried = "(code) => { try { document.body.%s; return 'done' } catch (error) { return error.name } }"
    assert screen.page.evaluate(tried % "innerHTML = code", MARKUP) == "TypeError"
    assert (
        screen.page.evaluate(tried % "append(document.createRange().createContextualFragment(code))", MARKUP)
        == "TypeError"
    )
    inline = """() => {
        const style = document.createElement('style');
        style.textContent = 'body { display: none }';
        document.head.append(style);
    }"""
    screen.page.evaluate(inline)
    assert screen.page.locator("body").is_visible()
    assert screen.complaints  # the browser reports what it refused
    screen.complaints.clear()


def test_a_page_under_another_name_gets_nothing(screen: Screen, stage: Stage) -> None:
    port = stage.agent.api_at.rpartition(":")[2]
    for path in ("", "page.js", "api/v1/flows"):
        answer = screen.page.goto(f"http://evil.example:{port}/{path}")
        assert answer
        assert answer.status == 403
        expect(screen.page.locator("body")).to_contain_text("use kubectl port-forward")
    screen.complaints.clear()  # Chromium notes each 403
