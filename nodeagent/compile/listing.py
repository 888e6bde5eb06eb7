"""A rule set as it will stand in a kernel: its chains, and each rule in the words of ``diff``.  Pure.

Promises: chains and texts are those that the backends read back from a netns that holds the rule set and nothing else,
so a plan without a kernel reads like one with it.
"""

from collections.abc import Iterator

from nodeagent.compile import legacy, nft, only_family
from nodeagent.model import BackendName, Family, Hook, RuleSet

_PREFIXES = {Family.V4: "ip", Family.V6: "ip6"}
_INTERVAL = 4  # NFT_SET_INTERVAL of linux/netfilter/nf_tables.h: all our sets have this flag, and no other


def list_chains(ruleset: RuleSet, backend: BackendName) -> dict[str, list[str]]:
    """Return the texts of the rules by chain, named as in :class:`~nodeagent.model.KernelState`.

    >>> from nodeagent.compile import compile_policy
    >>> from nodeagent.model import Policy
    >>> list_chains(compile_policy(Policy()), BackendName.NFT)["inet/nodeagent/keep"]
    ['ct state invalid']
    """
    if backend is BackendName.NFT:
        return dict(_nft_chains(ruleset))
    chains: dict[str, list[str]] = {}
    for family, prefix in _PREFIXES.items():
        for rule in legacy.lower(ruleset, family):
            chains.setdefault(f"{prefix}/{rule.table}/{rule.chain}", []).append(str(rule))
    return chains


def print_rules(ruleset: RuleSet, backend: BackendName, family: Family | None = None) -> Iterator[str]:
    """Yield the lines of *ruleset* in the words of the backend's own tool, of one family if it is given.

    >>> from nodeagent.compile import compile_policy
    >>> from nodeagent.model import Policy
    >>> next(print_rules(compile_policy(Policy()), BackendName.LEGACY, Family.V6))
    '# ip6tables'
    """
    if backend is BackendName.NFT:
        shown = only_family(ruleset, family) if family else ruleset
        yield from nft.text(nft.lower(shown)).splitlines()
        return
    for each in [family] if family else list(Family):
        yield f"# {_PREFIXES[each]}tables"
        yield from legacy.render(legacy.lower(ruleset, each)).splitlines()


def _nft_chains(ruleset: RuleSet) -> Iterator[tuple[str, list[str]]]:
    table = nft.lower(ruleset, generation="")
    own = f"inet/{nft.TABLE}/"
    for chain in table.chains:
        note = [f"rule set {ruleset.id}"] if chain is nft.CHAINS[Hook.REDIRECT] else []
        yield f"{own}{chain.name}#", [nft.declaration(chain.type, chain.hook, chain.priority), *note]
        rules = (rule for rule in table.rules if rule.chain == chain.name)
        yield own + chain.name, [" ".join(map(str, rule.statements)) for rule in rules]
    for each in table.sets:
        yield f"{own}{each.name}#", [f"type {each.type}; flags {_INTERVAL:#x};"]
        yield own + each.name, [nft.interval_text(each.type, *interval) for interval in each.intervals]
