"""Annotations to rule sets, once for all pods that say the same."""

from collections import OrderedDict
from collections.abc import Mapping

from nodeagent.agent.pod import Wanted
from nodeagent.compile import compile_policy
from nodeagent.model import Mode, RuleSet
from nodeagent.policy import Configuration, resolve

_MOST = 1024


class Policies:
    """What pods' annotations mean under one configuration.

    Equal annotations give the same object, and equal rule sets are one object: a list of 10,000 ranges
    is in memory once, not once a pod.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self._wanted: OrderedDict[tuple[tuple[str, str], ...], Wanted] = OrderedDict()
        self._rulesets: dict[str, RuleSet] = {}

    def wanted(self, annotations: Mapping[str, str]) -> Wanted:
        """Return what *annotations* ask for."""
        key = tuple(sorted(annotations.items()))
        if key in self._wanted:
            self._wanted.move_to_end(key)
            return self._wanted[key]
        resolution = resolve(annotations, self.configuration)
        ruleset = None
        if resolution.policy.mode is Mode.ENFORCE:
            made = compile_policy(resolution.policy)
            ruleset = self._rulesets.setdefault(made.id, made)
        self._wanted[key] = Wanted(resolution, ruleset)
        self._bound()
        return self._wanted[key]

    def _bound(self) -> None:
        if len(self._wanted) > _MOST:
            self._wanted.popitem(last=False)
            used = {wanted.ruleset.id for wanted in self._wanted.values() if wanted.ruleset}
            self._rulesets = {name: ruleset for name, ruleset in self._rulesets.items() if name in used}
