"""The web page with 10,000 flows: how soon it shows them, and whether it stutters while they change.

A real agent, a real Chromium without a window, both on this machine: what a browser elsewhere adds is the way there.
"""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from bench.statistics import Samples
from nodeagent.bpf.compiler import compile_programs
from nodeagent.cli.output import print_table
from tests.browser.chromium import chromium
from tests.browser.crowd import FLOWS, crawl, crowded
from tests.browser.stage import Stage

VIEWS = {
    "overview, `/`": "",
    "flows, page 1": "#/flows",
    "flows, page 50 by bytes": "#/flows?page=50&sort=-bytes",
    "the pod of all of them": "#/pods/shop/crawler",
}

_WATCH_FIRST_VIEW = """
new MutationObserver((_, watch) => {
    if (!document.querySelector('.live[data-looks]')) return;
    watch.disconnect();
    // The second frame begins when the first, which holds the data, has been drawn.
    requestAnimationFrame(() => requestAnimationFrame((at) => { window.shown = at; }));
}).observe(document, {subtree: true, childList: true, attributes: true});
"""
_SLOWEST_ANSWER = """
() => Math.max(...performance.getEntriesByType('resource')
    .filter((entry) => entry.name.includes('/api/')).map((entry) => entry.duration))
"""
_WATCH_FRAMES = """
(milliseconds) => new Promise((done) => {
    const gaps = [];
    const begin = performance.now();
    let last = begin;
    requestAnimationFrame(function frame(now) {
        gaps.push(now - last);
        last = now;
        if (now - begin < milliseconds) requestAnimationFrame(frame);
        else done(gaps.slice(1));
    });
})
"""


def run(loads: int, seconds: int = 10) -> None:
    """Print what is measured."""
    with _scene() as (stage, browser):
        print(
            f"\n## The page, {FLOWS:,} flows: from the address's entry to the view with its data drawn, {loads} loads\n"
        )
        rows = [(name, *_first_views(browser, stage.url + link, loads)) for name, link in VIEWS.items()]
        print_table(rows, ("view", "p50 ms", "p90 ms", "longest ms", "of it, the slowest answer: p50 ms"))
        print(f"\n## The page while a thousand flows change again and again: time between frames, {seconds} s\n")
        rows = [(name, *_frames(browser, stage, stage.url + link, seconds)) for name, link in VIEWS.items()]
        print_table(rows, ("view", "frames", "p50 ms", "p99 ms", "longest ms"))


@contextmanager
def _scene() -> Iterator[tuple[Stage, Browser]]:
    with tempfile.TemporaryDirectory() as folder:
        programs, home = Path(folder, "compiled"), Path(folder, "agent")
        programs.mkdir(mode=0o700)
        home.mkdir()
        compile_programs(cache=programs)
        with (
            crowded(home, programs) as stage,
            sync_playwright() as playwright,
            chromium(playwright, stage.place) as browser,
        ):
            yield stage, browser


@contextmanager
def _tab(browser: Browser) -> Iterator[Page]:
    """Open a tab with an empty profile: nothing is in its cache."""
    context = browser.new_context(viewport={"width": 1320, "height": 900})
    try:
        page = context.new_page()
        page.add_init_script(_WATCH_FIRST_VIEW)
        yield page
    finally:
        context.close()


def _first_views(browser: Browser, url: str, loads: int) -> tuple[str, ...]:
    shown, answered = [], []
    for _ in range(loads):
        with _tab(browser) as page:
            page.goto(url)
            page.wait_for_function("() => window.shown")
            shown.append(float(page.evaluate("() => window.shown")))
            answered.append(float(page.evaluate(_SLOWEST_ANSWER)))
    of_all = Samples(tuple(shown))
    return *(f"{of_all.percentile(share):.0f}" for share in (50, 90, 100)), f"{Samples(tuple(answered)).p50:.0f}"


def _frames(browser: Browser, stage: Stage, url: str, seconds: int) -> tuple[str, ...]:
    ends = threading.Event()

    def talk() -> None:
        while not ends.wait(0.5):
            crawl(stage.house("crawler"), FLOWS // 10)

    with _tab(browser) as page:
        page.goto(url)
        page.wait_for_function("() => window.shown")
        talker = threading.Thread(target=talk)
        talker.start()
        try:
            gaps: list[float] = page.evaluate(_WATCH_FRAMES, seconds * 1000)
        finally:
            ends.set()
            talker.join()
    between = Samples(tuple(gaps))
    return str(len(gaps)), *(f"{between.percentile(share):.0f}" for share in (50, 99, 100))
