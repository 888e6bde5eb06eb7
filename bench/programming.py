"""Programming one pod, and 250 in a row, against what today's meshes do from outside.

The peer pattern: enter with ``nsenter``, save, restore, for both families: four processes.
Ours includes the proofs (identity, cookie, address), the look at what stands in both backends, and
the round trip to the programmer's process.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

from bench.namespaces import Namespaces
from bench.statistics import Samples, interleave, milliseconds, spread, timed
from nodeagent.cli.output import print_table
from nodeagent.compile import compile_policy
from nodeagent.compile.legacy import lower, render
from nodeagent.model import Family, Policy, RuleSet
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import Choice, Target
from tests.cases.policies import ports, ranges

ADDRESS = "10.244.1.5"
POLICY = Policy(
    exclude_ranges=ranges("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8", "fe80::/10", "2001:db8::/32"),
    exclude_ports=ports(22, 3306, 5432),
)
"""Fifteen rules a family, more or less: what a typical pod of a mesh has."""


def run(rounds: int, pods: int) -> None:
    """Measure and print."""
    ruleset = compile_policy(POLICY)
    with lock_file(), ChildProgrammer() as programmer:
        _one_pod(programmer, ruleset, rounds)
        _many_pods(programmer, ruleset, pods)


@contextmanager
def lock_file() -> Iterator[None]:
    """Keep the machine's xtables lock out of it."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XTABLES_LOCKFILE"] = str(Path(directory) / "xtables.lock")
        yield


def _one_pod(programmer: ChildProgrammer, ruleset: RuleSet, rounds: int) -> None:
    with (
        Namespaces(rounds + 1, ADDRESS) as nft,
        Namespaces(rounds + 1, ADDRESS) as legacy,
        Namespaces(rounds + 1) as peers,
    ):
        actions = (
            _ours(programmer, ruleset, nft, Choice.NFT),
            _ours(programmer, ruleset, legacy, Choice.LEGACY),
            _peer(ruleset, peers),
        )
        for action in actions:  # encoded, imported, in cache
            action(rounds)
        by_nft, by_legacy, by_peer = interleave(actions, rounds)
    print(f"\n## One fresh pod, both families, proofs included ({rounds} interleaved rounds)\n")
    print_table(
        [
            ("nft", *_row(by_nft, by_peer)),
            ("legacy", *_row(by_legacy, by_peer)),
            (
                "nsenter, save + restore, 4 processes",
                milliseconds(by_peer.p50),
                milliseconds(by_peer.percentile(99)),
                "1",
                "1",
            ),
        ],
        ("how", "p50 ms", "p99 ms", "times faster [5 to 95 %]", "at p99"),
    )


def _row(ours: Samples, peer: Samples) -> tuple[str, ...]:
    tail = peer.percentile(99) / ours.percentile(99)
    return milliseconds(ours.p50), milliseconds(ours.percentile(99)), spread(ours.ratios(peer)), f"{tail:.3g}"


def _ours(programmer: ChildProgrammer, ruleset: RuleSet, pods: Namespaces, choice: Choice) -> Callable[[int], object]:
    proof = (ip_address(ADDRESS),)

    def program(number: int) -> None:
        applied = programmer.apply(Target(pods.paths[number], proof), ruleset, choice)
        assert applied.found.plan
        assert not applied.remaining

    return program


def _peer(ruleset: RuleSet, pods: Namespaces) -> Callable[[int], object]:
    texts = {family: render(lower(ruleset, family)) for family in Family}

    def program(number: int) -> None:
        for family, text in texts.items():
            tool = "iptables-legacy" if family is Family.V4 else "ip6tables-legacy"
            enter = ["nsenter", f"--net={pods.paths[number]}", "--"]
            subprocess.run([*enter, f"{tool}-save"], check=True, stdout=subprocess.DEVNULL)
            subprocess.run([*enter, f"{tool}-restore", "--noflush"], input=text, text=True, check=True)

    return program


def _many_pods(programmer: ChildProgrammer, ruleset: RuleSet, pods: int) -> None:
    print(f"\n## {pods} fresh pods in a row, one programmer\n")
    rows = []
    peer_seconds = 0.0
    with Namespaces(pods) as fresh:
        program = _peer(ruleset, fresh)
        peer_seconds = timed(lambda: [program(number) for number in range(pods)])
    for choice in (Choice.NFT, Choice.LEGACY):
        with Namespaces(pods, ADDRESS) as fresh:
            program = _ours(programmer, ruleset, fresh, choice)
            seconds = timed(lambda: [program(number) for number in range(pods)])  # noqa: B023  # run at once
            rows.append((choice.value, f"{seconds:.3f}", f"{peer_seconds / seconds:.3g}"))
    rows.append(("nsenter, save + restore", f"{peer_seconds:.3f}", "1"))
    print_table(rows, ("how", "seconds", "times faster"))
