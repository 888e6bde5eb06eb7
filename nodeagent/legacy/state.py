"""What stands in the legacy tables, as data: our state, what runs ahead of it, other proxies.

Pure: it works on tables that somebody read.  Images of rules hold content only: no counters,
no positions; a jump is the name of the chain it goes to.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from nodeagent.compile.foreign import other_proxy
from nodeagent.compile.legacy import CHAIN_PREFIX, COMMENT_PREFIX, TABLES
from nodeagent.errors import printable
from nodeagent.legacy import entries
from nodeagent.legacy.describe import describe, redirect_port
from nodeagent.legacy.splice import FIRST, Chain, Entry, Layered, is_ours
from nodeagent.model import BackendName, Family, KernelRule, KernelState, Reading

_NO_VERDICT: Final = 0


def interpret(tables: Sequence[Layered], proxy_port: int | None) -> Reading:
    """Return what *tables*, all that exist in a netns, say; strangers' and ours."""
    chains = dict(_our_chains(tables))
    return Reading(
        state=KernelState(BackendName.LEGACY, chains) if chains else None,
        ruleset_id=_ruleset_id(tables),
        ahead=tuple(text for layered in tables for text in _ahead(layered)),
        foreign=tuple(text for layered in tables for text in _foreign(layered, proxy_port)),
        in_use=any(chain.rules for layered in tables for chain in layered.chains),
    )


def expected_state(tables: Sequence[Layered]) -> KernelState:
    """Return the state of *tables* that hold nothing but our rules."""
    return KernelState(BackendName.LEGACY, dict(_our_chains(tables)))


def _our_chains(tables: Iterable[Layered]) -> Iterator[tuple[str, tuple[KernelRule, ...]]]:
    for layered in tables:
        family, name = layered.table.family, layered.table.name
        for chain in layered.chains if name in TABLES else ():
            rules = tuple(_kernel_rule(family, chain, rule) for rule in _ours_in(family, chain))
            if rules or chain.ours:
                yield f"{entries.LAYOUTS[family].prefix}/{name}/{chain.name}", rules


def _ours_in(family: Family, chain: Chain) -> Iterator[Entry]:
    if chain.ours:
        yield from chain.rules
    elif chain.hook is not None:
        yield from (rule for rule in chain.rules if is_ours(family, rule))


def _kernel_rule(family: Family, chain: Chain, rule: Entry) -> KernelRule:
    image = entries.mask(family, rule.data)
    if rule.jump is not None or rule.falls:
        image = entries.with_verdict(family, image, _NO_VERDICT) + (rule.jump or "").encode("latin-1")
    return KernelRule(image, _text(family, chain, rule))


def _text(family: Family, chain: Chain, rule: Entry) -> str:
    return describe(family, chain.name, rule.data, rule.jump, falls=rule.falls)


def _ruleset_id(tables: Iterable[Layered]) -> str | None:
    """Return what the jumps of nat OUTPUT say; None unless both families say the same."""
    said = set()
    for layered in tables:
        family = layered.table.family
        for chain in layered.chains if layered.table.name == "nat" else ():
            for rule in chain.rules if chain.hook is not None else ():
                if is_ours(family, rule) and (rule.jump or "").startswith(CHAIN_PREFIX):
                    said.add(entries.comment(family, rule.data).removeprefix(COMMENT_PREFIX))
    return said.pop() if len(said) == 1 else None


def _ahead(layered: Layered) -> Iterator[str]:
    """Yield strangers' rules that run before our jump, where we must be first."""
    table = layered.table
    for chain in layered.chains:
        if chain.hook is None or (table.name, chain.name) not in FIRST:
            continue
        ours = [number for number, rule in enumerate(chain.rules) if is_ours(table.family, rule)]
        for rule in chain.rules[: ours[0]] if ours else ():
            yield f"{_text(table.family, chain, rule)} ({table.label}, legacy)"


def _foreign(layered: Layered, proxy_port: int | None) -> Iterator[str]:
    """Yield what other proxies left: chains by their names, where a chain can redirect, and redirects to our port."""
    table = layered.table
    for chain in layered.chains if table.name in TABLES else ():
        mesh = other_proxy(chain.name) if chain.hook is None else None
        if mesh:
            yield f"{mesh}'s chain {printable(chain.name)} ({table.label}, legacy)"
    if table.name == "nat" and proxy_port is not None:
        for chain in _strangers_from_output(layered):
            for rule in chain.rules:
                mine = chain.hook is not None and is_ours(table.family, rule)
                if not mine and redirect_port(table.family, rule.data) == proxy_port:
                    yield f"a redirect to port {proxy_port} from {printable(chain.name)} ({table.label}, legacy)"


def _strangers_from_output(layered: Layered) -> Iterator[Chain]:
    """Yield OUTPUT and strangers' chains that strangers' rules lead to from there, each once."""
    family = layered.table.family
    by_name = {chain.name: chain for chain in layered.chains}
    seen: set[str] = set()
    waiting = ["OUTPUT"]
    while waiting:
        name = waiting.pop()
        chain = by_name.get(name)
        if chain is None or chain.ours or name in seen:
            continue
        seen.add(name)
        yield chain
        theirs = [rule for rule in chain.rules if chain.hook is None or not is_ours(family, rule)]
        waiting += [rule.jump for rule in reversed(theirs) if rule.jump]
