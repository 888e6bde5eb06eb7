"""A real Prometheus scrapes a ledger whose agent is restarted under traffic: no error, no reset, no spike."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from nodeagent.ledger import Ledger, Limits
from nodeagent.metrics import Exposition, MetricsView
from nodeagent.model import FlowClass, FlowKey, PodName, PodRecord, Policy
from nodeagent.state import Store
from tests.cases.slots import CountingKernel

CONFIGURATION = """
global: {scrape_interval: 500ms, scrape_timeout: 500ms}
scrape_configs: [{job_name: nodeagent, static_configs: [{targets: ['127.0.0.1:%d']}]}]
"""
RECORDS = {7: PodRecord(PodName("shop", "cart-0", "3b1e"), 7, Policy(), epochs={2: Policy()})}
KEYS = [FlowKey(7, 71, ip_address(f"192.0.2.{n}"), 443, 6, 2, 2, FlowClass(n % 4)) for n in range(40)]
RESTARTS = 5
HOT, PACKETS = 5, 40
"""Destinations that get most of the traffic for a while, and then others do; and how many packets a scrape."""

MOST = 2 * 100 * (HOT * PACKETS + len(KEYS))
"""Bytes that any series can grow by between two samples, should a scrape be lost between them."""


class Agent:
    """Answers each scrape with the traffic of a moment more."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kernel = CountingKernel(capacity=100)
        self.lock = threading.Lock()
        self.scrapes = 0
        self.scraped = threading.Condition(self.lock)
        self.store = Store.open(directory)
        self.start()

    def start(self) -> None:
        self.ledger, self.exposition = Ledger(Limits(top_destinations=5), memory=self.store.memory), Exposition()

    def restart(self) -> None:
        with self.lock:
            self.store.close()
            self.store = Store.open(self.directory)
            self.start()

    def answer(self, accept: str, encodings: str) -> tuple[str, str | None, bytes]:
        with self.lock:
            self.scrapes += 1
            self.scraped.notify_all()
            first = self.scrapes // 3 * HOT % len(KEYS)
            for n, key in enumerate(KEYS):
                self.kernel.send(key, PACKETS if first <= n < first + HOT else 1)
            changes = self.ledger.observe(self.kernel.read(), RECORDS, 100.0 * self.scrapes)
            self.store.save(RECORDS.values())
            self.store.commit(changes, self.ledger.memory)
            view = MetricsView(
                "1", "6", series=self.ledger.series(), totals=self.ledger.totals(), pods=self.ledger.pods()
            )
            return self.exposition.answer(lambda: view, 100.0 * self.scrapes, accept, encodings)

    def wait(self, scrapes: int) -> None:
        with self.lock:
            wanted = self.scrapes + scrapes
            assert self.scraped.wait_for(lambda: self.scrapes >= wanted, timeout=60)


@contextmanager
def serving(agent: Agent) -> Iterator[int]:
    """Serve an agent's /metrics; yield the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, encoding, body = agent.answer(self.headers["Accept"], self.headers["Accept-Encoding"])
            self.send_response(200)
            self.send_header("Content-Type", kind)
            if encoding:
                self.send_header("Content-Encoding", encoding)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the library's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def prometheus(directory: Path, target: int) -> Iterator[str]:
    """Run Debian's Prometheus on *target*; yield the address of its API once that answers."""
    program = shutil.which("prometheus")
    assert program, "prometheus is missing: make setup installs Debian's package (requirements/debian-tests.txt)"
    (directory / "prometheus.yml").write_text(CONFIGURATION % target)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as reserved:
        port = reserved.server_port
    arguments = (f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'tsdb'}")
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen([program, *arguments, f"--web.listen-address=127.0.0.1:{port}"], stderr=log) as server,
    ):
        try:
            yield f"http://127.0.0.1:{port}/api/v1"
        finally:
            server.terminate()


def scraped(api: str) -> dict[str, list[int]]:
    """Return all samples of our counters, by series."""
    query = quote("{__name__=~'nodeagent_egress_.*_total'}[10m]")
    with urlopen(f"{api}/query?query={query}", timeout=10) as response:  # noqa: S310  # our own server
        found = json.load(response)["data"]["result"]
    return {json.dumps(one["metric"], sort_keys=True): [int(value) for _, value in one["values"]] for one in found}


@pytest.mark.slow
def test_no_series_is_reset_and_none_jumps_over_restarts(tmp_path: Path) -> None:
    agent = Agent(tmp_path / "state")
    with serving(agent) as port, prometheus(tmp_path, port) as api:
        for _ in range(RESTARTS):
            agent.wait(3)
            agent.restart()
        agent.wait(3)
        found = scraped(api)
    complaints = [line for line in (tmp_path / "log").read_text().splitlines() if "rror on ingesting" in line]
    assert not complaints
    assert sum("egress_bytes_total" in name for name in found) >= 5, "destinations, and other"
    assert max(map(len, found.values())) >= 2 * RESTARTS
    for name, values in found.items():
        steps = [after - before for before, after in pairwise(values)]
        assert all(0 <= step <= MOST for step in steps), (name, values)
    assert max(max(values) for values in found.values()) > MOST, "a jump would be seen"
