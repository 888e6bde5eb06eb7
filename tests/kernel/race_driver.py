"""Let another programmer, or the kernel, act in the middle of an apply or a clear; say as JSON how it ended.

And what stood afterwards.

Run by ``test_races.py`` in a process of its own, because it lives in an empty namespace like
the programmer does: ``python -m tests.kernel.race_driver NETNS SCENARIO``.
"""

import json
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count

from nodeagent.compile import compile_policy
from nodeagent.errors import KernelError, NodeagentError
from nodeagent.legacy import LegacyBackend
from nodeagent.model import BackendName, KernelState, Policy, Program, Reading, RuleSet
from nodeagent.netns.home import Home
from nodeagent.nft import NftBackend
from nodeagent.programmer.backend import Backend
from nodeagent.programmer.core import NetnsProgrammer
from nodeagent.programmer.seam import Choice, Target
from tests.cases.policies import POLICIES

NFT, LEGACY = BackendName.NFT, BackendName.LEGACY
RULES, RIVALS = compile_policy(Policy()), compile_policy(POLICIES["dns_capture"])


class Interrupted:
    """A real backend; somebody else acts right before and right after each of its writes."""

    def __init__(self, backend: Backend) -> None:
        self.real, self.name = backend, backend.name
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None
        self.sticks = False

    def available(self) -> str | None:
        return self.real.available()

    def encode(self, ruleset: RuleSet) -> Program:
        return self.real.encode(ruleset)

    def read(self, proxy_port: int | None = None) -> Reading:
        return self.real.read(proxy_port)

    def mark(self) -> Hashable | None:
        return self.real.mark()

    def stands(self, mark: Hashable) -> bool:
        return self.real.stands(mark)

    def write(self, program: Program, found: KernelState | None) -> None:
        self.before()
        self.real.write(program, found)
        self.after()

    def ready_to_remove(self) -> AbstractContextManager[None]:
        return self.real.ready_to_remove()

    def stop(self) -> None:
        self.real.stop()

    def remove(self) -> None:
        if self.sticks:
            raise KernelError("the kernel refuses")
        self.real.remove()


@dataclass
class Race:
    """We apply by *mine*; the rival, who goes by the other, does things in between."""

    mine: BackendName
    netns: str

    def __post_init__(self) -> None:
        self.home = Home()
        self.backends = {b.name: Interrupted(b) for b in (NftBackend(), LegacyBackend())}
        self.programmer = NetnsProgrammer(self.home, self.backends)
        self.other = LEGACY if self.mine is NFT else NFT
        self.theirs = self.backends[self.other].encode(RIVALS)
        self.ours = self.backends[self.mine]
        self.act: Callable[[], str] = self.apply

    def rival_writes(self) -> None:
        self.backends[self.other].real.write(self.theirs, None)

    def rival_moves(self) -> None:
        """Do what an apply by the other backend does that has seen our rules."""
        self.rival_writes()
        self.ours.real.remove()

    def apply(self) -> str:
        """Return how an apply ended that raised nothing."""
        applied = self.programmer.apply(Target(self.netns), RULES, Choice(self.mine.value))
        return "applied" if not applied.remaining else "remaining"

    def clear(self) -> str:
        """Return how a clear ended that raised nothing."""
        return "removed" if self.programmer.clear(Target(self.netns), now=True).removed else "draining"

    def run(self) -> dict[str, object]:
        """Apply, or whatever else is to be done; return how it ended and what stands."""
        try:
            end = self.act()
        except NodeagentError as error:
            end = f"{type(error).__name__}: {error}"
        with self.home.visit(self.netns):
            stands = {name.value: backend.read().ruleset_id for name, backend in self.backends.items()}
        return {"end": end, "stands": {name: which(found) for name, found in stands.items() if found}}


def which(ruleset_id: str) -> str:
    return {RULES.id: "ours", RIVALS.id: "theirs"}[ruleset_id]


def once(act: Callable[[], None]) -> Callable[[], None]:
    turns: Iterator[int] = count()
    return lambda: act() if next(turns) == 0 else None


def begin(netns: str, scenario: str) -> Race:
    """Return the race of that name."""
    mine, _, when = scenario.partition(": ")
    race = Race(BackendName(mine), netns)
    match when:
        case "written before us":
            race.ours.before = once(race.rival_writes)
        case "written after us":
            race.ours.after = once(race.rival_writes)
        case "moved away from us":
            race.ours.after = once(race.rival_moves)
        case "moved away from us each time":
            race.ours.after = race.rival_moves
        case "moved back while we move":
            with race.home.visit(netns):
                race.rival_writes()
            race.ours.after = once(race.rival_moves)
        case "theirs stick" | "theirs stick, cleared":
            with race.home.visit(netns):
                race.rival_writes()
                race.ours.real.write(race.ours.encode(RULES), None)
            race.backends[race.other].sticks = True
            race.act = race.clear if when.endswith("cleared") else race.apply
        case "nobody":
            pass
        case _:
            raise ValueError(scenario)
    return race


if __name__ == "__main__":
    json.dump(begin(*sys.argv[1:]).run(), sys.stdout)
