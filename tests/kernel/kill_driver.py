"""Kill an apply at every one of its system calls; say as JSON what stood afterwards.

Run by ``test_kill.py`` in a process of its own, because it lives in an empty namespace like
the programmer does: ``python -m tests.kernel.kill_driver BACKEND NETNS BEFORE AFTER EVERY``, where
BEFORE and AFTER are names of ``tests/cases/policies.py`` (BEFORE may be ``nothing``).
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping

from nodeagent.compile import compile_policy
from nodeagent.legacy import LegacyBackend
from nodeagent.model import BackendName, KernelRule, KernelState, RuleSet
from nodeagent.netns.home import Home
from nodeagent.nft import NftBackend
from nodeagent.programmer.core import NetnsProgrammer
from nodeagent.programmer.seam import Choice, Target
from tests.cases.policies import POLICIES
from tests.kernel.ptrace import kill_at

Chains = dict[str, tuple[KernelRule, ...]]
Tables = dict[str, Chains]


class Experiment:
    """One transition, to be interrupted at every system call."""

    def __init__(self, backend: str, netns: str, before: str, after: str, every: str) -> None:
        self.every = int(every)
        self.home = Home()
        self.backend = {b.name: b for b in (NftBackend(), LegacyBackend())}
        self.programmer = NetnsProgrammer(self.home, self.backend)
        self.name, self.choice, self.target = BackendName(backend), Choice(backend), Target(netns)
        self.before = compile_policy(POLICIES[before]) if before != "nothing" else None
        self.after = compile_policy(POLICIES[after])

    def reset(self) -> None:
        """Bring the namespace to where the transition starts."""
        if self.before:
            self.programmer.apply(self.target, self.before, self.choice)
        else:
            self.programmer.clear(self.target, now=True)

    def go(self, ruleset: RuleSet) -> None:
        """Apply; nothing may be left to do."""
        if self.programmer.apply(self.target, ruleset, self.choice).remaining:
            raise AssertionError("not converged")

    def tables(self) -> Tables:
        """Return what stands, table by table."""
        with self.home.visit(self.target.netns):
            return by_table(self.backend[self.name].read().state)

    def run(self) -> dict[str, object]:
        """Interrupt everywhere; return the calls, and each table that was neither old nor new."""
        self.go(self.after)  # encoded from here on: what follows is the apply alone
        self.reset()
        old = self.tables()
        self.go(self.after)
        new = self.tables()
        wrong: list[dict[str, object]] = []
        calls: list[int | None] = []
        states = Counter[str]()
        while True:
            self.reset()
            killed, call = kill_at(len(calls) * self.every + 1, lambda: self.go(self.after))
            if not killed:
                break
            calls.append(call)
            found = self.tables()
            for table in {*old, *new, *found}:
                match = which(without_orphans(found.get(table, {}), old, new), old.get(table, {}), new.get(table, {}))
                states[match] += 1
                if match == "neither":
                    wrong.append({"call": len(calls), "nr": call, "table": table})
            self.go(self.after)
            if self.tables() != new:
                wrong.append({"call": len(calls), "nr": call, "table": "after the next apply"})
        return {"calls": len(calls), "wrong": wrong, "states": dict(states), "changed": old != new}


def by_table(state: KernelState | None) -> Tables:
    """Group chains by what is replaced at once: a legacy table, the whole of the nft table."""
    tables: Tables = {}
    for chain, rules in (state.chains if state else {}).items():
        tables.setdefault(chain.rpartition("/")[0], {})[chain] = rules
    return tables


def without_orphans(found: Chains, old: Tables, new: Tables) -> Chains:
    """Leave out sets that no rule names yet: nft's first transaction makes them, the next apply removes them."""
    known = {chain for tables in (old, new) for chains in tables.values() for chain in chains}
    return {chain: rules for chain, rules in found.items() if chain in known}


def which(found: Mapping[str, object], old: Mapping[str, object], new: Mapping[str, object]) -> str:
    """Say whether a table holds the old rules, the new ones, or a mixture."""
    if found == new:
        return "new" if old != new else "same"
    return "old" if found == old else "neither"


if __name__ == "__main__":
    json.dump(Experiment(*sys.argv[1:]).run(), sys.stdout)
