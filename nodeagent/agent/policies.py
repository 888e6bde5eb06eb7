"""Annotations to rule sets, once for all pods that say the same."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

from nodeagent.agent.pod import Wanted
from nodeagent.compile import compile_policy
from nodeagent.model import Mode, Policy, RuleSet
from nodeagent.policy import Configuration, OptIn, Resolution, resolve

_MOST = 1024

_Key: TypeAlias = tuple[object, ...]


class Policies:
    """What pods' annotations mean under one configuration.

    Equal annotations on top of an equal base give the same objects, and equal rule sets are one object: a list of
    10,000 ranges is in memory once, not once a pod.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self._wanted: OrderedDict[_Key, Wanted] = OrderedDict()
        self._rulesets: dict[str, RuleSet] = {}

    def wanted(self, annotations: Mapping[str, str], opted: OptIn | None = None) -> Wanted:
        """Return what *annotations* ask for; of a pod of the cluster, *opted* says whether it is ours, and its base."""
        key: _Key = (tuple(sorted(annotations.items())), *(_base(opted) if opted else ()))
        if key not in self._wanted:
            self._wanted[key] = self._resolve(annotations, opted)
            self._bound()
        self._wanted.move_to_end(key)
        found = self._wanted[key]
        return replace(found, opted=opted) if opted else found

    def remember(self, policy: Policy) -> Wanted:
        """Return what *policy* asks for, of a pod whose annotations nobody knows at present."""
        opted = OptIn(policy.mode, "as an agent before this one understood it: the API server is not heard", policy)
        return Wanted(Resolution(policy), self._compile(policy), opted)

    def _resolve(self, annotations: Mapping[str, str], opted: OptIn | None) -> Wanted:
        resolution = resolve(annotations, self.configuration, opted.base if opted else None)
        if opted:
            resolution = replace(resolution, policy=opted.bound(resolution.policy))
        return Wanted(resolution, self._compile(resolution.policy))

    def _compile(self, policy: Policy) -> RuleSet | None:
        if policy.mode is not Mode.ENFORCE:
            return None
        made = compile_policy(policy)
        return self._rulesets.setdefault(made.id, made)

    def _bound(self) -> None:
        if len(self._wanted) > _MOST:
            self._wanted.popitem(last=False)
            used = {wanted.ruleset.id for wanted in self._wanted.values() if wanted.ruleset}
            self._rulesets = {name: ruleset for name, ruleset in self._rulesets.items() if name in used}


def _base(opted: OptIn) -> _Key:
    """Return all in which a base may differ from the cluster's policy, and what bounds it."""
    base: Policy = opted.base
    return (
        base.mode,
        base.proxy_uids,
        base.proxy_gids,
        tuple(sorted(base.sources.items())),
        bool(opted.skipped),
        opted.redirector,
    )
