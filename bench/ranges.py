"""What 1 to 10,000 excluded ranges cost: to program, and to a connection that matches none of them."""

import socket
from collections.abc import Callable

from bench.programming import POLICY, lock_file
from bench.statistics import Samples, interleave, milliseconds, spread, timed
from nodeagent.cli.output import print_table
from nodeagent.compile import compile_policy
from nodeagent.model import Policy, RuleSet
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import Choice, Target
from tests.cases.policies import ranges, scattered
from tests.lab import Topology

COUNTS = (1, 100, 1_000, 10_000)
TO = ("203.0.113.10", 443)
BATCH = 40


def run(rounds: int) -> None:
    """Measure and print, for each backend."""
    for choice in (Choice.NFT, Choice.LEGACY):
        with lock_file(), ChildProgrammer() as programmer, Topology() as lab:
            _measure(programmer, lab, choice, rounds)


def _measure(programmer: ChildProgrammer, lab: Topology, choice: Choice, rounds: int) -> None:
    rulesets = [compile_policy(POLICY), *(compile_policy(excluding(count)) for count in COUNTS)]
    target = Target(lab.pod.path)
    encoding = [timed(lambda r=r: programmer.apply(target, r, choice)) for r in rulesets]  # type: ignore[misc]  # at once
    programming: list[list[float]] = [[] for _ in rulesets]
    actions = [
        _batch(programmer, lab, ruleset, choice, taken) for ruleset, taken in zip(rulesets, programming, strict=True)
    ]
    connecting = interleave(actions, rounds)
    connecting = [
        Samples(tuple(s - p for s, p in zip(c.seconds, taken, strict=True)))
        for c, taken in zip(connecting, programming, strict=True)
    ]
    print(
        f"\n## {choice.value}: excluded ranges, and a connection that matches none\n"
        f"({rounds} rounds of {BATCH} connections)\n"
    )
    print_table(
        [
            (
                name,
                milliseconds(first),
                milliseconds(Samples(tuple(taken)).p50),
                milliseconds(samples.p50 / BATCH),
                spread(connecting[0].ratios(samples)),
            )
            for name, first, taken, samples in zip(
                ("15 rules", *(f"{count:,} ranges" for count in COUNTS)), encoding, programming, connecting, strict=True
            )
        ],
        ("rules", "first (encode) ms", "replay over others, ms", "connect ms", "connect, to 15 rules"),
    )


def excluding(count: int) -> Policy:
    """Return a policy that excludes *count* ranges which cannot be collapsed."""
    return Policy(exclude_ranges=ranges(*scattered(count, "20.0.0.0/28")))


def _batch(
    programmer: ChildProgrammer, lab: Topology, ruleset: RuleSet, choice: Choice, taken: list[float]
) -> Callable[[int], object]:
    """Return an action that programs (timed into *taken*) and then connects BATCH times."""

    def act(_: int) -> None:
        taken.append(timed(lambda: programmer.apply(Target(lab.pod.path), ruleset, choice)))
        for _connection in range(BATCH):
            with lab.pod.socket(socket.AF_INET, socket.SOCK_STREAM, uid=1000, gid=1000) as sock:
                sock.connect(TO)

    return act
