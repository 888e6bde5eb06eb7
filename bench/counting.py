"""What counting costs: a packet, a request and its answer, a connection; and what reading the counts costs."""

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.programming import lock_file
from bench.statistics import Samples, interleave, milliseconds, spread, timed
from nodeagent.bpf import layout, programs, syscalls
from nodeagent.bpf.compiler import compile_programs
from nodeagent.bpf.counting import Counting, Settings, detach
from nodeagent.bpf.generations import Folder
from nodeagent.bpf.slots import SlotReader
from nodeagent.cli.output import print_table
from nodeagent.compile import compile_policy
from nodeagent.model import Policy
from nodeagent.model.flow import CountedPod
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import Choice, Target
from tests.cases.policies import ranges
from tests.lab import PodCgroups, TestCgroup, Topology

TO = ("203.0.113.10", 7000)
POLICY = Policy(exclude_ranges=ranges("203.0.113.0/24"))
EXCHANGES, CONNECTIONS, FLOWS = 4000, 400, 10_000
IP_TRANSPARENT = 19
CGROUP_SKB, INGRESS, EGRESS = 8, 0, 1
EMPTY = bytes.fromhex("b7000000010000009500000000000000")  # r0 = 1; exit


class Bench:
    """A pod with rules, a server that it may reach directly, and counting that can be switched on and off."""

    def __init__(self, stack: ExitStack) -> None:
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.node = stack.enter_context(TestCgroup())
        self.cgroups = PodCgroups(self.node, "bench")
        self.lab = stack.enter_context(Topology(cgroups=self.cgroups))
        self.settings = Settings(cgroup=self.node.path, cache=cache)
        stack.callback(detach, self.settings.bpffs)
        stack.enter_context(lock_file())
        programmer = stack.enter_context(ChildProgrammer())
        programmer.apply(Target(self.lab.pod.path), compile_policy(POLICY), Choice.NFT)
        self.lab.world.nft(f"insert rule inet world answers tcp dport {TO[1]} accept")
        self.server = stack.enter_context(self.lab.world.socket(socket.AF_INET, socket.SOCK_STREAM))
        self.server.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        self.server.bind(("0.0.0.0", TO[1]))  # noqa: S104  # a namespace of its own
        self.server.listen()

    @contextmanager
    def counting(self) -> Iterator[Counting]:
        """Count, until the block ends."""
        with Counting.load(self.settings) as counting:
            counting.enrol(CountedPod(self.cgroups.pod.id, 1, 2, 15001, 15053, (1337,), (1337,)))
            yield counting
        detach(self.settings.bpffs)

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a new connection."""
        client = self.lab.pod.socket(socket.AF_INET, socket.SOCK_STREAM, uid=1000, gid=1000)
        client.connect(TO)
        return client, self.server.accept()[0]

    def exchange(self, number: int = EXCHANGES) -> float:
        """Return the processor time of *number* requests and answers on one connection, both ends in this process."""
        client, served = self.connect()
        with client, served:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            begin = time.process_time()
            for _ in range(number):
                client.send(b"x" * 64)
                served.recv(64)
                served.send(b"y" * 64)
                client.recv(64)
            return time.process_time() - begin

    def datagrams(self, number: int = EXCHANGES) -> float:
        """Return the processor time of *number* datagrams from a connected socket."""
        with self.lab.pod.socket(socket.AF_INET, socket.SOCK_DGRAM, uid=1000, gid=1000) as sock:
            sock.connect(("203.0.113.11", 443))
            begin = time.process_time()
            for _ in range(number):
                sock.send(b"x" * 1200)
            return time.process_time() - begin

    def dial(self, number: int = CONNECTIONS) -> float:
        """Return the processor time of *number* connections that are made and closed."""
        clients = [self.lab.pod.socket(socket.AF_INET, socket.SOCK_STREAM, uid=1000, gid=1000) for _ in range(number)]
        begin = time.process_time()
        for client in clients:
            client.connect(TO)
            served, _ = self.server.accept()
            client.close()
            served.close()
        return time.process_time() - begin


def run(rounds: int) -> None:
    """Measure and print."""
    with ExitStack() as stack:
        stack.enter_context(_one_processor())
        bench = Bench(stack)
        _packets(bench)
        _ratios(bench, rounds)
        _reading(bench, rounds)


@contextmanager
def _one_processor() -> Iterator[None]:
    """Stay on one processor, the last: both ends of a connection have the same caches then, in every round."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _packets(bench: Bench, samples: int = 16) -> None:
    """Print the cost of a packet: the kernel's own statistics, less those of a program that does nothing.

    That one takes the other's place by turns: whatever runs first on a hook pays 7 to 10 ns for finding its way there.
    """
    rows = []
    with bench.counting():
        code, maps = compile_programs(cache=bench.settings.cache), Folder(bench.settings.bpffs).generations()[-1].maps()
        both = ("request and answer, warm", bench.exchange), ("connect and close", bench.dial)
        sent = (*both, ("datagrams", bench.datagrams))
        for name, attach_type, traffic in (("egress", EGRESS, sent), ("ingress", INGRESS, both)):
            empty = syscalls.load_program(CGROUP_SKB, "na_empty", EMPTY, attach_type)
            ours = programs.load(name, code[name], maps)
            link = syscalls.get(str(Folder(bench.settings.bpffs).links / name))
            for what, action in traffic:
                pairs = [[_nanoseconds(link, program, action) for program in (ours, empty)] for _ in range(samples)]
                net, none = Samples(tuple(a - b for a, b in pairs)), Samples(tuple(b for _, b in pairs))
                shown = (net.p50, net.percentile(10), net.percentile(90), none.p50)
                rows.append((name, what, *(f"{value:.0f}" for value in shown)))
            syscalls.update_link(link, ours)
            for descriptor in (empty, ours, link):
                os.close(descriptor)
        programs.close_all(maps.values())
    print("\n## Counting: nanoseconds a packet, net of an empty program\n")
    print_table(rows, ("program", "traffic", "median", "p10", "p90", "the empty one"))


def _nanoseconds(link: int, program: int, action: Callable[[], float]) -> float:
    """Return what a run of *program* takes, where *link* is."""
    syscalls.update_link(link, program)
    before = syscalls.run_time(link)
    statistics = syscalls.enable_statistics()
    try:
        action()
    finally:
        os.close(statistics)
    time_, runs = (now - then for now, then in zip(syscalls.run_time(link), before, strict=True))
    return time_ / runs


def _ratios(bench: Bench, rounds: int) -> None:
    rows = []
    for what, action, number in (
        ("request and answer", bench.exchange, EXCHANGES),
        ("connect and close", bench.dial, CONNECTIONS),
    ):
        plain: list[float] = []
        counted: list[float] = []
        again: list[float] = []
        for number_of_round in range(rounds):
            order = (plain, counted, again) if number_of_round % 2 else (again, counted, plain)
            for taken in order:
                if taken is counted:
                    with bench.counting():
                        taken.append(action())
                else:
                    taken.append(action())
        base = Samples(tuple(plain))
        rows.append(
            (
                what,
                f"{base.p50 / number * 1e6:.1f}",
                spread(base.ratios(Samples(tuple(counted)))),
                spread(base.ratios(Samples(tuple(again)))),
            )
        )
    print(f"\n## Counting: processor time, to the same rules uncounted ({rounds} rounds)\n")
    print_table(rows, ("traffic", "uncounted, us", "counted, to uncounted", "uncounted, to itself"))


def _reading(bench: Bench, rounds: int) -> None:
    with bench.counting() as counting, bench.lab.pod.socket(socket.AF_INET, socket.SOCK_DGRAM, uid=1, gid=1) as sock:

        def send_all(step: int = 1) -> None:
            for number in range(0, FLOWS, step):
                sock.sendto(b"x", (f"198.18.{number >> 8}.{number & 255}", 9))

        send_all()
        first = timed(SlotReader(counting.slots_fd).read)
        changed: list[float] = []
        some: list[float] = []
        with SlotReader(counting.slots_fd) as reader:
            assert len(reader.read()) == FLOWS + layout.CLASSES
            for _ in range(max(3, rounds // 4)):
                send_all()
                changed.append(timed(reader.read))
                send_all(100)
                some.append(timed(reader.read))
            (same,) = interleave([lambda _: reader.read()], rounds * 5)
    rows = [
        ("first, keys and all", milliseconds(first), ""),
        ("every one changed", milliseconds(Samples(tuple(changed)).p50), milliseconds(max(changed))),
        (f"{FLOWS // 100} changed", milliseconds(Samples(tuple(some)).p50), milliseconds(max(some))),
        ("none changed", milliseconds(same.p50), milliseconds(same.percentile(95))),
    ]
    print(f"\n## Counting: reading {FLOWS:,} flows, in ms\n")
    print_table(rows, ("reading", "median", "worst"))
