"""Writes generation after generation of a state until it is killed: ``python -m tests.unit.state_writer DIRECTORY``.

Generation n is one transaction: n slots with base n, one pod whose policy excludes port n, epoch
2n.  Prints n when it is kept.
"""

import sys
from dataclasses import replace
from pathlib import Path

from nodeagent.ledger import Account, Changes, KnownSlot, Line, Memory
from nodeagent.model import Counters, PodName, PodRecord, Policy, Reason, Verdict
from nodeagent.state import Store
from tests.cases.policies import ports

LINE = Line(Account(Verdict.BYPASSED, Reason.NON_TCP, "udp"), "192.0.2.1")
SLOTS = 50
RECORD = PodRecord(PodName("shop", "cart-0", "3b1e"), 7, Policy())


def changes(generation: int) -> Changes:
    """Return what generation *generation* changes: every slot's base."""
    return Changes(
        slots=tuple(
            KnownSlot(
                n, generation, f"key {n}", pod=7, container=71, line=LINE, base=Counters(generation), evicted=False
            )
            for n in range(SLOTS)
        ),
        dropped_bytes=generation,
    )


def generation_of(memory: Memory) -> int:
    """Return the one generation that *memory* is of; fails if it is of several."""
    generations = {slot.generation for slot in memory.slots} | {slot.base.connections for slot in memory.slots}
    (generation,) = generations | {memory.dropped_bytes}
    assert len(memory.slots) == (SLOTS if generation else 0)
    return generation


def main() -> None:
    store = Store.open(Path(sys.argv[1]), wait=5)
    generation = generation_of(store.memory) if store.memory.slots else 0
    while True:
        generation += 1
        policy = Policy(exclude_ports=ports(generation % 60000))
        store.save([replace(RECORD, policy=policy, epochs={2 * generation: policy})])
        store.commit(changes(generation), Memory)
        print(generation, flush=True)


if __name__ == "__main__":
    main()
