"""Whatever pods, kernel, operators and SIGKILL do: no series falls, and the books close."""

from collections import defaultdict
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from nodeagent.ledger import OTHER, RETENTION, Changes, Ledger, Limits, Memory, Naming
from nodeagent.model import Counters, FlowClass, FlowKey, FlowOwner, PodName, PodRecord, Policy
from nodeagent.state import Store
from tests.cases.kept import apply
from tests.cases.policies import ranges
from tests.cases.slots import CountingKernel

APP, SIDECAR = 1, 2
POLICIES = (
    Policy(),
    Policy(exclude_ranges=ranges("10.0.0.0/30")),
    Policy(include_ranges=ranges("10.0.0.4/32"), dns_capture=True),
)
NAMINGS = (
    Naming(),
    Naming({"db": (ip_network("10.0.0.0/30"),)}),
    Naming({"lan": (ip_network("10.0.0.0/8"),), "db": (ip_network("10.0.0.2/31"),)}),
)
LIMITS = (Limits(top_destinations=2), Limits(top_destinations=4), Limits(top_destinations=1, series_limit=30))
PODS = st.integers(1, 3)
FLOWS = st.builds(
    FlowKey,
    pod=PODS,
    container=st.sampled_from([APP, SIDECAR]),
    destination=st.integers(0, 7).map(lambda n: ip_address(f"10.0.0.{n}")),
    port=st.sampled_from([53, 443]),
    protocol=st.sampled_from([6, 17]),
    ifindex=st.sampled_from([2, 2, 2, 1]),
    epoch=st.sampled_from([0, 2, 3, 4, 6]),
    flow_class=st.sampled_from(list(FlowClass)),
    owner=st.sampled_from([FlowOwner.NONE, FlowOwner.UID]),
)
ZERO = Counters()


def record_of(pod: int, policies: tuple[int, int] = (0, 1), **changes: object) -> PodRecord:
    first, second = (POLICIES[n] for n in policies)
    record = PodRecord(
        name=PodName("shop", f"cart-{pod}", str(pod)),
        id=pod,
        policy=second,
        epochs={2: first, 4: second},
        containers={APP: "app", SIDECAR: "istio-proxy"},
        sidecars=frozenset({SIDECAR}),
    )
    return replace(record, **changes)  # type: ignore[arg-type]  # fields of a record


class Node(RuleBasedStateMachine):
    """An agent on a node; ``kept`` is what its store holds, ``shown`` what a scrape saw last."""

    @initialize()
    def start(self) -> None:
        self.kernel = CountingKernel(capacity=12)
        self.kept = Memory()
        self.records = {pod: record_of(pod) for pod in (1, 2, 3)}
        self.limits, self.naming, self.now = LIMITS[0], NAMINGS[0], 1000.0
        self.ledger = Ledger(self.limits, self.naming)
        self.shown: dict[tuple[object, ...], Counters] = {}
        self.overflow = 0
        self.talked_to_themselves = set[int]()

    # -- what the world does

    @rule(flows=st.lists(st.tuples(FLOWS, st.sampled_from([1, 5, 60, 700])), min_size=1, max_size=9))
    def pods_send(self, flows: list[tuple[FlowKey, int]]) -> None:
        self._send(flows)

    def _send(self, flows: list[tuple[FlowKey, int]]) -> None:
        for key, count in flows:
            if key.pod in self.records:
                self.kernel.send(key, count)
                if key.ifindex == 1:
                    self.talked_to_themselves.add(key.pod)

    @rule(pod=PODS, policies=st.tuples(st.integers(0, 2), st.integers(0, 2)), enforced=st.booleans())
    def a_pod_is_edited(self, pod: int, policies: tuple[int, int], enforced: bool) -> None:  # noqa: FBT001
        if pod in self.records:
            self.records[pod] = record_of(pod, policies, enforced=enforced)

    @rule(pod=PODS, sidecars=st.sampled_from([frozenset[int](), frozenset({SIDECAR}), frozenset({APP, SIDECAR})]))
    def a_pods_containers_become_known(self, pod: int, sidecars: frozenset[int]) -> None:
        if pod in self.records:
            self.records[pod] = replace(self.records[pod], sidecars=sidecars)

    @rule(pod=PODS)
    def a_pod_ends_or_comes_back(self, pod: int) -> None:
        if not self.records.pop(pod, None):
            self.records[pod] = record_of(pod)

    @rule(limits=st.sampled_from(LIMITS), naming=st.sampled_from(NAMINGS))
    def the_configuration_is_edited(self, limits: Limits, naming: Naming) -> None:
        self.limits, self.naming = limits, naming
        self.ledger.configure(limits, naming)

    @rule(seconds=st.sampled_from([1.0, 11.0, 11.0, RETENTION / 2, RETENTION]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def the_layout_changes(self) -> None:
        self.kernel.carry_over()
        self.the_agent_is_killed()

    @rule(killed=st.booleans())
    def the_kernel_loses_its_maps(self, killed: bool) -> None:  # noqa: FBT001
        """Begin anew: what was shown stays, what comes is added; an agent that begins then knows less."""
        self._look_and_show()
        self.kernel.lose_everything(self.ledger._books)
        if killed:
            self.the_agent_is_killed()
            self.shown, self.overflow = {}, 0
            self._look()
            for pod, book in self.ledger._books.items():
                self.kernel.sent[pod] = sum(counters.packets for counters in book.totals().values())
                self.kernel.ever_sent[pod] = max(self.kernel.ever_sent.get(pod, 0), self.kernel.sent[pod])
        self._look_and_show()

    @rule(key=FLOWS, counts=st.lists(st.sampled_from([1, 5, 60]), min_size=1, max_size=3), looks=st.integers(0, 7))
    def slots_of_one_key_wait_to_be_released_and_the_layout_changes(
        self, key: FlowKey, counts: list[int], looks: int
    ) -> None:
        """As where a pod is counted, forgotten and counted again, and its agent is killed all the while."""
        for number, count in enumerate(counts):
            self._send([(key, count)])
            self._look_and_show()
            self.kernel.evict([(s.position, s.generation) for s in self.kernel.read() if s.key == key])
            if looks >> number & 1:
                self._look_and_show()
        self.the_layout_changes()
        self._look_and_show()

    # -- what the agent does

    @rule()
    def the_agent_looks_and_shows(self) -> None:
        self._look_and_show()

    @rule()
    def the_agent_is_killed_before_it_keeps_what_it_saw(self) -> None:
        self.ledger.observe(self.kernel.read(), self.records, self.now)
        self.the_agent_is_killed()

    @rule()
    def the_agent_is_killed_before_it_shows_what_it_kept(self) -> None:
        self._look()
        self.the_agent_is_killed()

    @rule()
    def the_agent_is_killed(self) -> None:
        self._restart()

    @rule(idle=st.sampled_from([0.0, 61.0, 61.0]), flows=st.lists(st.tuples(FLOWS, st.integers(1, 9)), max_size=3))
    def the_agent_evicts_what_is_idle(self, idle: float, flows: list[tuple[FlowKey, int]]) -> None:
        self._look_and_show()
        self.now += idle
        self.kernel.evict(self.ledger.victims(self.kernel.free, 1000, self.now))
        self._send(flows)

    @rule()
    def the_agent_releases(self) -> None:
        self._look()
        self.now += 1
        self.kernel.release(self.ledger.releases(self.now), self.ledger._books)

    @rule(keeps=st.booleans(), releases=st.integers(0, 9))
    def the_agent_takes_over_what_pods_left_that_have_ended(self, keeps: bool, releases: int) -> None:  # noqa: FBT001
        """... or is killed before it kept that, or after some of the releases."""
        for pod in {1, 2, 3} - self.records.keys():
            self.kernel.forget(pod)
        self._look_and_show()
        self.ledger.settle(self.ledger.closing())
        if keeps:
            self._look_and_show()
            self.now += 1
            self.kernel.release(self.ledger.releases(self.now)[:releases], self.ledger._books)
        else:
            self.ledger.observe(self.kernel.read(), self.records, self.now)
        if releases < 5 or not keeps:
            self.the_agent_is_killed()

    @rule()
    def the_agent_cannot_read_slots_at_first(self) -> None:
        self.the_agent_is_killed()
        self._keep(self.ledger.observe(None, self.records, self.now))
        assert not self.ledger.is_open
        assert [*self.ledger.series(), *self.ledger.totals(), *self.ledger.flows()] == []

    @rule()
    def the_agent_is_killed_in_the_midst_of_a_release(self) -> None:
        self._look()
        self.now += 1
        self.kernel.release(self.ledger.releases(self.now)[:1], self.ledger._books)
        self.the_agent_is_killed()

    def _look(self) -> None:
        changes = self.ledger.observe(self.kernel.read(), self.records, self.now)
        self._keep(changes)
        for pod in changes.forgotten:
            self.kernel.close_books(pod)
        self.shown = {key: counters for key, counters in self.shown.items() if key[0] not in changes.forgotten}

    def _keep(self, changes: Changes) -> None:
        self.kept = apply(self.kept, changes, self.records)

    def _restart(self) -> None:
        self.ledger = Ledger(self.limits, self.naming, self.kept)

    # -- what must hold

    def _look_and_show(self) -> None:
        self._look()
        for pod, book in self.ledger._books.items():
            for line, group in book.series():
                self._show((pod, line), group.value)
            for account, counters in book.others.items():
                self._show((pod, account, OTHER), counters)
        assert self.ledger.overflow_bytes >= self.overflow
        self.overflow = self.ledger.overflow_bytes
        self._check_sums()

    def _show(self, key: tuple[object, ...], counters: Counters) -> None:
        before = self.shown.get(key, ZERO)
        assert all(a <= b for a, b in zip(before, counters, strict=True)), f"{key} fell from {before} to {counters}"
        self.shown[key] = counters

    def _check_sums(self) -> None:
        for pod, book in self.ledger._books.items():
            assert book.others == book._exact_others, "a number had to be held up"
            counted = sum(counters.packets for counters in book.totals().values())
            if pod in self.talked_to_themselves:
                assert counted <= self.kernel.ever_sent.get(pod, 0)
            else:
                assert counted == self.kernel.sent.get(pod, 0)
        sums = defaultdict[tuple[str, str, str, str], int](int)
        for flow in self.ledger.flows():
            assert min(flow[-5:]) >= 0, flow
            sums[flow.pod, flow.verdict, flow.reason, flow.protocol] += flow.packets
        totals = {(t.pod, *t.account): t.counters.packets for t in self.ledger.totals()}
        assert {k: v for k, v in sums.items() if v} == {k: v for k, v in totals.items() if v}


class NodeOnDisk(Node):
    """The same with the real store."""

    @initialize()
    def open(self) -> None:
        self.directory = TemporaryDirectory()
        self.store = Store.open(Path(self.directory.name))

    def _keep(self, changes: Changes) -> None:
        self.store.save(self.records.values())
        self.store.commit(changes, self.ledger.memory)

    def _restart(self) -> None:
        self.store.close()
        self.store = Store.open(Path(self.directory.name))
        assert self.store.began is None
        self.ledger = Ledger(self.limits, self.naming, self.store.memory)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.directory.cleanup()


TestNode = Node.TestCase
TestNode.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestNodeOnDisk = NodeOnDisk.TestCase
TestNodeOnDisk.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
