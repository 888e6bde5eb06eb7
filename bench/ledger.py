"""What the ledger costs: an observation of 10,000 slots, its memory, keeping it; and a scrape of 10,000 series."""

import os
import tempfile
import tracemalloc
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest

from bench.statistics import Samples, interleave, milliseconds, spread, timed
from nodeagent.cli.output import print_table
from nodeagent.ledger import Ledger, Limits
from nodeagent.metrics import Exposition, MetricsView
from nodeagent.model import Counters, FlowClass, FlowKey, PodName, PodRecord, Policy, Slot, SlotState
from nodeagent.state import Store

PODS, SLOTS, SERIES = 250, 10_000, 10_000
LIMITS = Limits(series_limit=SERIES)
LABELS = ("source_namespace", "source_pod", "destination", "protocol", "verdict", "reason")

RECORDS = {
    pod: PodRecord(
        name=PodName("shop", f"cart-{pod:04}-7d9c5b", str(pod)),
        id=pod,
        policy=Policy(),
        epochs={2: Policy()},
        containers={10 * pod: "app"},
        interfaces={2: "eth0"},
    )
    for pod in range(1, PODS + 1)
}
KEYS = [
    FlowKey(
        pod=1 + n % PODS,
        container=10 * (1 + n % PODS),
        destination=ip_address(f"10.{n // PODS}.0.{n % PODS}"),
        port=443,
        protocol=6,
        ifindex=2,
        epoch=2,
        flow_class=FlowClass.BYPASSED if n % 3 else FlowClass.INTERCEPTED,
    )
    for n in range(SLOTS)
]


def run(rounds: int) -> None:
    """Measure and print."""
    _observing(rounds)
    _scraping(rounds)


def slots(packets: Callable[[int], int]) -> list[Slot]:
    """Return 10,000 slots; *packets* says how many each has counted."""
    return [
        Slot(4096 + n, 1, SlotState.LIVE, key, Counters(1, *(packets(n) * 100 for _ in range(6))))
        for n, key in enumerate(KEYS)
    ]


def _observing(rounds: int) -> None:
    ledger, before = Ledger(LIMITS), slots(lambda _: 1)
    first = timed(lambda: ledger.observe(before, RECORDS, 0))
    reads = {
        "none has changed": [slots(lambda _: 1) for _ in range(2)],
        "one in ten has": [slots(lambda n, r=r: 1 + r * (n % 10 == 0)) for r in range(2)],  # type: ignore[misc]
        "all have": [slots(lambda _, r=r: 5 + r) for r in range(2)],  # type: ignore[misc]  # bound at once
    }
    rows: list[tuple[object, ...]] = [("first sight of all", milliseconds(first))]
    for name, pair in reads.items():
        ledger.observe(pair[1], RECORDS, 0)
        (taken,) = interleave([lambda n, pair=pair: ledger.observe(pair[n % 2], RECORDS, 0)], rounds)  # type: ignore[misc]
        rows.append((name, milliseconds(taken.p50)))
    with tempfile.TemporaryDirectory(dir=_memory_disk()) as directory:
        store = Store.open(Path(directory))
        store.save(RECORDS.values())
        again = Ledger(LIMITS)
        changes = again.observe(before, RECORDS, 0)
        rows.append(
            ("keeping what the first sight changed", milliseconds(timed(lambda: store.commit(changes, again.memory))))
        )
        store.close()
        rows.append(("opening what was kept", milliseconds(timed(lambda: Store.open(Path(directory)).close()))))
    rows.append(("all flows, as rows", milliseconds(Samples(tuple(timed(ledger.flows) for _ in range(5))).p50)))
    rows.append(("memory of the ledger, MB", f"{_memory() / 1e6:.1f}"))
    print(f"\n## The ledger: {SLOTS:,} slots of {PODS} pods ({rounds} rounds)\n")
    print_table(rows, ("observation", "p50 ms"))


def _memory_disk() -> str | None:
    """Return a place like /run, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  # a directory of our own in it


def _memory() -> int:
    """Return the bytes that books take, slots as they were read included, keys not."""
    tracemalloc.start()
    ledger = Ledger(LIMITS)
    ledger.observe(slots(lambda _: 1), RECORDS, 0)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size


def _scraping(rounds: int) -> None:
    limits = Limits(top_destinations=18, series_limit=11_000)  # 18, and two of `other`, a pod
    ledger = Ledger(limits)
    ledger.observe(slots(lambda _: 3), RECORDS, 0)
    view = MetricsView("1", "6", series=ledger.series(), series_limit=SERIES)
    assert len(view.series) * 2 == SERIES, len(view.series)
    exposition = Exposition()
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's
    ours, stock, generating = interleave(
        [lambda n: exposition.answer(lambda: view, 10.0 * n), lambda _: _stock(view), lambda _: _taking(ledger)], rounds
    )
    zipped = interleave([lambda n: exposition.answer(lambda: view, 1e6 + 10 * n, encodings="gzip")], rounds)[0]
    size = len(exposition.answer(lambda: view, 0).body)
    print(f"\n## A scrape of {SERIES:,} series, {size / 1e6:.1f} MB ({rounds} rounds)\n")
    print_table(
        [
            ("rendered by hand", milliseconds(ours.p50), milliseconds(ours.percentile(99)), spread(ours.ratios(stock))),
            ("the same, gzipped", milliseconds(zipped.p50), milliseconds(zipped.percentile(99)), ""),
            (
                "Counter.labels() and generate_latest()",
                milliseconds(stock.p50),
                milliseconds(stock.percentile(99)),
                "1",
            ),
            (
                "taking the view from the ledger",
                milliseconds(generating.p50),
                milliseconds(generating.percentile(99)),
                "",
            ),
        ],
        ("how", "p50 ms", "p99 ms", "times cheaper"),
    )


def _taking(ledger: Ledger) -> object:
    return ledger.series(), ledger.totals(), ledger.pods()


def _stock(view: MetricsView) -> bytes:
    """Do what the library is made for: a child of each counter for each set of labels, then text."""
    registry = CollectorRegistry()
    sent = Counter("nodeagent_egress_bytes", "IP bytes", LABELS, registry=registry)
    begun = Counter("nodeagent_egress_connections", "Connections", LABELS, registry=registry)
    for namespace, pod, destination, (verdict, reason, protocol), counters in view.series:
        labels = namespace, pod, destination, protocol, verdict, reason
        sent.labels(*labels).inc(counters.bytes)
        begun.labels(*labels).inc(counters.connections)
    return generate_latest(registry)
