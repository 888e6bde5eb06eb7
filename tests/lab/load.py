"""Many short connections from inside a namespace, each of which reports who answered it and when.

For rule changes under load: a record's `began` and `ended` are CLOCK_MONOTONIC, as `time.monotonic_ns()` is in the
test process, so a test can tell which rules were in force during it.
"""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from tests.lab.cgroups import Cgroup
from tests.lab.netns import Netns
from tests.lab.outcome import Outcome, failed, judge
from tests.lab.process import LabProcess
from tests.lab.wire import Address, Greeting


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """TCP connections to *targets*, in turn, as one user."""

    targets: tuple[Address, ...]
    connections: int | None = None
    """How many by each worker; None: until `stop`."""
    workers: int = 1
    """Processes; more than the machine has cores to spare makes it slower."""
    in_flight: int = 16
    """Connections that each worker has open at a time."""
    per_second: float | None = None
    """Starts per second and worker; None: as fast as it goes."""
    uid: int = 1000
    gid: int = 1000
    timeout: float = 20.0


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """One connection of the load."""

    dialled: Address
    began: int
    ended: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class LoadReport:
    """All connections of a load, none left out, in the order of their beginning."""

    records: tuple[LoadRecord, ...]

    @property
    def per_second(self) -> float:
        """Connections per second, from the first beginning to the last end."""
        if not self.records:
            return 0.0
        span = max(record.ended for record in self.records) - self.records[0].began
        return len(self.records) / span * 1e9

    def verdicts(self) -> Counter[tuple[Address, str]]:
        """Return how often each destination had each verdict."""
        return Counter((record.dialled, record.outcome.verdict) for record in self.records)

    def broken(self) -> tuple[LoadRecord, ...]:
        """Return the connections that nobody answered, or that broke before the answer was whole."""
        return tuple(record for record in self.records if record.outcome.error)


class Load:
    """A load that runs from `__init__` on; leaving the `with` block ends it, heard or unheard."""

    def __init__(self, netns: Netns, plan: LoadPlan, cgroup: Cgroup | None = None) -> None:
        """Start *plan* in *netns* and *cgroup*."""
        self._plan = plan
        with ExitStack() as unfinished:
            self._workers = [
                unfinished.enter_context(
                    LabProcess("tests.lab.load_worker", str(plan.uid), str(plan.gid), within=netns.enter)
                )
                for _ in range(plan.workers)
            ]
            for worker in self._workers:
                worker.ready()
                if cgroup:
                    cgroup.join(worker.pid)
            for worker in self._workers:
                worker.send(
                    "run",
                    targets=plan.targets,
                    connections=plan.connections,
                    in_flight=plan.in_flight,
                    interval=1e9 / plan.per_second if plan.per_second else 0,
                    timeout=plan.timeout,
                )
            self._processes = unfinished.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.close()

    def is_done(self) -> bool:
        """Tell whether every worker has made all its connections."""
        return all(worker.has_answered() for worker in self._workers)

    def stop(self) -> LoadReport:
        """Begin no more connections, let those in flight end, and return the report."""
        for worker in self._workers:
            worker.send("stop")
        return self.report()

    def report(self) -> LoadReport:
        """Wait for the workers, whose plan must have an end, and return the report; once only."""
        lines = [line for worker in self._workers for line in worker.receive()]
        records = (self._record(*line) for line in lines)
        return LoadReport(tuple(sorted(records, key=lambda record: record.began)))

    def _record(self, target: int, began: int, ended: int, heard: str, error: int) -> LoadRecord:
        dialled = self._plan.targets[target]
        hops = tuple(greeting for line in heard.encode().splitlines() if (greeting := Greeting.parse(line)))
        if error:
            return LoadRecord(dialled, began, ended, failed(OSError(error, "")))
        return LoadRecord(dialled, began, ended, judge(dialled, hops))
