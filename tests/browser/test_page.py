"""The page shows what the agent says: every view, filter, link and file, live."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, expect

from nodeagent.decide import ROWS
from tests.browser.screen import Screen, looking
from tests.browser.stage import Stage, Talk
from tests.lab import Dial

pytestmark = pytest.mark.browser

WEB, BATCH = "shop/web-7d4b9c6f5-x2x8q", "legacy/batch-28110-5xw8j"


def test_the_first_view_says_what_bypasses_why_and_whether_it_should(screen: Screen, stage: Stage) -> None:
    screen.go("")
    sums = stage.agent.ask("/api/v1/overview")["sums"]["egress"]
    bypassing = [why for why in sums if why["verdict"] == "bypassed"]
    share = sum(why["bytes"] for why in bypassing) / sum(why["bytes"] for why in sums if why["kind"] != "proxy")
    expect(screen.page.locator(".tile .big").nth(0)).to_have_text(f"{round(100 * share)} %")
    expect(screen.page.locator(".tile").nth(1)).to_contain_text("2 connections")
    expect(screen.page.locator(".tile .big").nth(2)).to_have_text("0")
    screen.has("Egress that should be intercepted leaks now")
    table = "Egress that bypasses, by reason, leaks first"
    kinds = screen.column(table, "Should it?")
    assert kinds[0] == "leak"
    assert Counter(kinds) == {"leak": 1, "only watched": 1, "as configured": 3}
    assert sorted(why.split("\n")[0] for why in screen.column(table, "Why")) == sorted(w["reason"] for w in bypassing)
    assert screen.column(table, "Who")[0] == BATCH
    assert screen.column(table, "To")[0] == "203.0.113.77"


def test_the_picture_has_a_band_for_each_pod_destination_and_kind(screen: Screen, stage: Stage) -> None:
    screen.go("")
    links = stage.agent.ask("/api/v1/overview")["sums"]["links"]
    ribbons = screen.page.locator(".picture .ribbon")
    expect(ribbons).to_have_count(len(links))
    drawn = {
        ribbon.locator("title").text_content() or "": (
            (ribbon.get_attribute("class") or "").split()[1],
            float(ribbon.locator("path").get_attribute("stroke-width") or 0),
        )
        for ribbon in ribbons.all()
    }
    for link in links:
        name = f"{link['namespace']}/{link['pod']} → {link['destination']}:"
        found = [value for title, value in drawn.items() if title.startswith(name)]
        assert link["kind"] in {kind for kind, _ in found}, name
    widths = {title: width for title, (_, width) in drawn.items()}
    widest, second = (f"{link['namespace']}/{link['pod']} → {link['destination']}:" for link in links[:2])
    of = {name: max(w for title, w in widths.items() if title.startswith(name)) for name in (widest, second)}
    assert of[widest] / of[second] == pytest.approx(links[0]["bytes"] / links[1]["bytes"], rel=0.05)
    assert min(widths.values()) >= 1.5


def test_a_band_leads_to_its_flows(screen: Screen) -> None:
    screen.go("")
    screen.page.locator(".picture .ribbon.leak").dispatch_event("click")
    expect(screen.rows("Flows of this node")).to_have_count(1)
    assert screen.column("Flows of this node", "Reason") == ["impersonated_proxy"]
    assert "kind=leak" in screen.page.url


def test_the_overview_of_a_namespace_is_a_link(screen: Screen) -> None:
    screen.go("")
    screen.page.get_by_label("Namespace").select_option("payments")
    expect(screen.page.locator(".picture .ribbon")).to_have_count(3)
    assert "#/?namespace=payments" in screen.page.url
    screen.go("#/?namespace=payments")
    expect(screen.page.get_by_label("Namespace")).to_have_value("payments")
    expect(screen.page.locator(".picture .ribbon")).to_have_count(3)


Wanted = Callable[[dict[str, Any]], bool]
FILTERS: dict[str, tuple[str, Wanted]] = {
    "by a search": ("search=istio-proxy", lambda flow: flow["container"] == "istio-proxy"),
    "by address and port": (
        "search=198.51.100.20%3A443",
        lambda flow: (flow["address"], flow["port"]) == ("198.51.100.20", 443),
    ),
    "by kind": ("kind=leak", lambda flow: flow["reason"] == "impersonated_proxy"),
    "by reason": ("reason=excluded_cidr", lambda flow: flow["reason"] == "excluded_cidr"),
    "by protocol": ("protocol=udp", lambda flow: flow["protocol"] == "udp"),
    "by destination": ("destination=payments-partner", lambda flow: flow["destination"] == "payments-partner"),
    "by several at once": (
        "verdict=bypassed&protocol=udp&namespace=payments",
        lambda flow: (flow["protocol"], flow["namespace"], flow["verdict"]) == ("udp", "payments", "bypassed"),
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_flows_are_filtered_by_a_link(name: str, screen: Screen, stage: Stage) -> None:
    query, wanted = FILTERS[name]
    expected = [flow for flow in stage.agent.flows() if wanted(flow)]
    assert expected
    screen.go(f"#/flows?{query}")
    expect(screen.rows("Flows of this node")).to_have_count(len(expected))
    assert Counter(screen.column("Flows of this node", "Reason")) == Counter(flow["reason"] for flow in expected)


def test_filters_are_set_by_hand_and_stand_in_the_address(screen: Screen, stage: Stage) -> None:
    screen.go("#/flows")
    screen.page.get_by_label("What").select_option("configured")
    screen.page.get_by_label("Protocol").select_option("tcp")
    screen.page.get_by_role("searchbox", name="Search").press_sequentially("payments-partner")
    of_partner = stage.agent.flows(destination="payments-partner", protocol="tcp")
    expect(screen.rows("Flows of this node")).to_have_count(len(of_partner))
    for part in ("kind=configured", "protocol=tcp", "search=payments-partner"):
        assert part in screen.page.url
    screen.page.get_by_label("Reason").select_option("rules_missing")
    screen.has("No flow is like that.")
    screen.page.go_back()
    expect(screen.rows("Flows of this node")).to_have_count(len(of_partner))


def test_a_filter_that_came_with_a_link_can_be_dropped(screen: Screen, stage: Stage) -> None:
    screen.go("#/flows?destination=cache")
    expect(screen.rows("Flows of this node")).to_have_count(1)
    screen.page.get_by_role("link", name="destination: cache").click()
    expect(screen.rows("Flows of this node")).to_have_count(len(stage.agent.flows()))


@pytest.mark.parametrize(("head", "field"), [("Sent", "bytes"), ("Connections", "connections"), ("Port", "port")])
def test_flows_are_sorted_by_a_click_and_back_by_another(head: str, field: str, screen: Screen, stage: Stage) -> None:
    screen.go("#/flows?sort=pod&protocol=tcp")
    column = screen.page.get_by_role("columnheader", name=head)
    flows = stage.agent.flows(protocol="tcp")
    for direction, pick in (("descending", max), ("ascending", min)):
        column.get_by_role("link").click()
        expect(column).to_have_attribute("aria-sort", direction)
        first = pick(flow[field] for flow in flows)
        shown = _size(first) if field == "bytes" else str(first)
        expect(screen.rows("Flows of this node").first).to_contain_text(shown)


def _size(number: int) -> str:
    return (
        f"{number} B"
        if number < 1024
        else f"{number / 1024:.0f} KiB"
        if number >= 102400
        else f"{number / 1024:.1f} KiB"
    )


def test_pods_are_listed_filtered_and_sorted(screen: Screen) -> None:
    screen.go("#/pods")
    pods = screen.column("Pods of this node", "Pod")
    assert pods == sorted(pods)
    assert len(pods) == 5
    screen.page.get_by_label("State").select_option("observed")
    expect(screen.rows("Pods of this node")).to_have_count(1)
    screen.has("platform/log-shipper")
    screen.go("#/pods?only=leaking")
    assert screen.column("Pods of this node", "Pod") == [BATCH]
    screen.go("#/pods?search=shop&sort=-pod")
    assert screen.column("Pods of this node", "Pod") == ["shop/web-7d4b9c6f5-x2x8q", "shop/cart-6c8d5-kk2pd"]
    screen.go("#/pods?only=out_of_sync")
    screen.has("No pod is like that.")


def test_a_pods_page_shows_its_policy_rules_and_flows(screen: Screen, stage: Stage) -> None:
    screen.go("#/pods")
    screen.page.get_by_role("link", name=WEB).click()
    pod = stage.agent.pod("web-7d4b9c6f5-x2x8q")
    facts = dict(
        zip(
            screen.page.locator("dl.facts dt").all_inner_texts(),
            screen.page.locator("dl.facts dd").all_inner_texts(),
            strict=True,
        )
    )
    assert facts["Mode"] == "enforce"
    assert facts["Rules"] == "in sync"
    assert facts["Rule set"] == pod["ruleset_id"]
    assert facts["Epoch"] == str(pod["epoch"])
    assert facts["Backend"] == "nft"
    assert facts["Containers"] == "app, istio-proxy"
    values = screen.column("Policy", "Value, and its source")
    assert "198.51.100.0/24 annotation nodeagent.io/excludeOutboundIPRanges (@payments-partner)" in values[2]
    assert "15001 default" in values[6]
    screen.page.get_by_text("The rule set as text").click()
    expect(screen.page.get_by_role("region", name="Rules as text")).to_contain_text("table inet nodeagent {")
    expect(screen.page.get_by_role("region", name="Rules as text")).to_contain_text("198.51.100.0/24")
    expect(screen.rows("Flows of this pod")).to_have_count(len(stage.agent.flows(pod="web-7d4b9c6f5-x2x8q")))


def test_a_pod_that_is_not_there_is_told_so(screen: Screen) -> None:
    screen.go("#/pods/shop/nobody")
    screen.has("no pod shop/nobody on this node")


EXPLANATIONS = {
    "excluded by an annotation": (
        (WEB, "198.51.100.20:443"),
        ("It bypasses the sidecar", "annotation nodeagent.io/excludeOutboundIPRanges (@payments-partner)", 4),
        "went as the policy says",
    ),
    "intercepted": ((WEB, "203.0.113.10:443"), ("It goes to the sidecar, at port 15001", "*", 9), "as the policy says"),
    "UDP over IPv6, never seen": (
        (WEB, "[2001:db8::99]:443/udp"),
        ("not TCP", "only TCP is intercepted", 7),
        "Nothing was seen of it so far.",
    ),
    "predicted to be intercepted, and leaked": (
        (BATCH, "203.0.113.77:5432"),
        ("It goes to the sidecar", "default", 9),
        "went another way: impersonated_proxy",
    ),
    "in a pod that is only watched": (
        ("platform/log-shipper", "203.0.113.200:24224"),
        ("nothing of ours is programmed", "If the policy were enforced", 9),
        "went as the policy says",
    ),
}


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_explain_says_verdict_rule_source_and_what_was_seen(name: str, screen: Screen) -> None:
    (pod, to), (verdict, source, row), seen = EXPLANATIONS[name]
    screen.go("#/explain")
    screen.page.get_by_label("Pod", exact=True).fill(pod)
    screen.page.get_by_label("Destination").fill(to)
    screen.page.get_by_role("button", name="Explain").click()
    said = screen.page.get_by_role("region", name="What the policy says")
    expect(said).to_contain_text(verdict)
    expect(said).to_contain_text(source)
    expect(screen.page.locator(".precedence [aria-current]")).to_contain_text(ROWS[row])
    expect(screen.page.get_by_role("region", name="What was seen")).to_contain_text(seen)
    screen.has(f"nodeagent explain --pod {pod} --to {to}")
    assert f"#/explain?pod={quote(pod, safe='')}" in screen.page.url


def test_explain_refuses_what_it_does_not_understand(screen: Screen) -> None:
    screen.go(f"#/explain?pod={quote(WEB)}&to=somewhere")
    expect(screen.page.locator("[role=alert]:visible")).to_contain_text("to=somewhere")
    screen.go(f"#/explain?pod={quote(WEB)}&to=203.0.113.10%3A443&uid=1337")
    screen.has("it comes from the proxy's own uid or gid")


def test_tables_are_downloaded_as_csv_and_json(screen: Screen, stage: Stage) -> None:
    screen.go("#/flows?protocol=tcp&sort=-bytes")
    expected = stage.agent.flows(protocol="tcp", sort="-bytes")
    assert json.loads(_file(screen, "JSON", "flows.json")) == expected
    rows = list(csv.DictReader(io.StringIO(_file(screen, "CSV", "flows.csv"))))
    assert [(row["pod"], row["address"], int(row["bytes"])) for row in rows] == [
        (flow["pod"], flow["address"], flow["bytes"]) for flow in expected
    ]
    screen.go("#/pods")
    pods = list(csv.DictReader(io.StringIO(_file(screen, "CSV", "pods.csv"))))
    assert sorted(row["ruleset_id"] for row in pods) == sorted(
        pod["ruleset_id"] or "" for pod in stage.agent.ask("/api/v1/pods")["pods"]
    )


def _file(screen: Screen, link: str, name: str) -> str:
    with screen.page.expect_download() as started:
        screen.page.get_by_role("link", name=link, exact=True).click()
    assert started.value.suggested_filename == name
    return started.value.path().read_text()


def test_what_happens_now_is_shown_without_a_reload(screen: Screen, stage: Stage) -> None:
    screen.go("#/flows?search=203.0.113.150")
    screen.has("No flow is like that.")
    stage.house("cart").say(Talk(Dial("203.0.113.150", 8443), 500, 2))
    expect(screen.rows("Flows of this node")).to_have_count(1)
    assert screen.column("Flows of this node", "Connections") == ["2"]
    stage.house("cart").say(Talk(Dial("203.0.113.150", 8443), 500))
    expect(screen.rows("Flows of this node").locator("td:nth-child(8)")).to_have_text("3")


def test_a_page_that_pauses_stays_as_it_is(screen: Screen, stage: Stage) -> None:
    screen.go("#/flows?search=203.0.113.151")
    screen.page.get_by_role("button", name="Pause").click()
    expect(screen.page.locator(".live")).to_contain_text("as of")
    asked = len(screen.requests)
    stage.house("cart").say(Talk(Dial("203.0.113.151", 8443)))
    with looking(screen.page.context.browser or pytest.fail("no browser"), stage.url) as other:
        other.go("#/flows?search=203.0.113.151")  # a page that did not pause shows it, and looks again
        expect(other.rows("Flows of this node")).to_have_count(1)
        other.wait_for_a_look(2)
    assert len(screen.requests) == asked
    screen.has("No flow is like that.")
    screen.page.get_by_role("button", name="Go on").click()
    expect(screen.rows("Flows of this node")).to_have_count(1)


def test_the_configuration_in_force_is_shown(screen: Screen) -> None:
    screen.go("#/config")
    expect(screen.page.get_by_role("region", name="Settings")).to_contain_text('"payments-partner"')


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_until_somebody_chooses(scheme: str, browser: Browser, stage: Stage) -> None:
    other = "dark" if scheme == "light" else "light"
    with looking(browser, stage.url, scheme) as screen:  # type: ignore[arg-type]  # one of the two
        screen.go("")
        own = _ground(screen)
        button = screen.page.get_by_role("button", name="Theme")
        for _ in range(1 if other == "light" else 2):
            button.click()
        expect(button).to_have_text(f"Theme: {other}")
        chosen = _ground(screen)
        assert chosen != own
        screen.go("#/flows")
        assert _ground(screen) == chosen


def _ground(screen: Screen) -> str:
    return str(screen.page.evaluate("() => getComputedStyle(document.body).backgroundColor"))


def test_everything_is_reached_with_the_keyboard(screen: Screen) -> None:
    screen.go("")
    screen.page.keyboard.press("Tab")
    expect(screen.page.get_by_role("button", name="Skip to the content")).to_be_focused()
    screen.page.keyboard.press("Enter")
    expect(screen.page.locator("main")).to_be_focused()
    screen.page.keyboard.press("Tab")
    expect(screen.page.locator(".tile").first).to_be_focused()
    screen.page.keyboard.press("Enter")
    expect(screen.page.get_by_role("heading", name="Flows")).to_be_visible()
    expect(screen.page.locator("main")).to_be_focused()
    head = screen.page.get_by_role("columnheader", name="Pod").get_by_role("link")
    head.focus()
    screen.page.keyboard.press("Enter")
    expect(screen.page.get_by_role("columnheader", name="Pod")).to_have_attribute("aria-sort", "ascending")
    screen.wait_for_a_look(3)
    expect(head).to_be_focused()  # also after it was drawn anew
