"""The canonical form of a rule set: one JSON text, and the ID that is its hash.

The same text carries a rule set to a child process or over the seam.  :func:`from_json`
refuses whatever :func:`to_json` would not have written.
"""

import hashlib
import json
from dataclasses import fields
from ipaddress import ip_network
from typing import Any, Final

from nodeagent.errors import InputError
from nodeagent.model import (
    Action,
    Bypass,
    Family,
    Hook,
    Match,
    Nothing,
    PortRange,
    Protocol,
    RangeSet,
    Redirect,
    Rule,
    RuleSet,
    Zone,
)

ID_DIGITS: Final = 16

_Chains = tuple[tuple[Hook, tuple[Rule, ...]], ...]
_PORTED: Final[dict[str, type[Redirect | Zone]]] = {"redirect": Redirect, "zone": Zone}
_PLAIN: Final[dict[str, type[Bypass | Nothing]]] = {"bypass": Bypass, "nothing": Nothing}


def identify(chains: _Chains, sets: tuple[RangeSet, ...]) -> RuleSet:
    """Return the rule set of these chains and sets under its ID."""
    body = _dump(chains, sets)
    digest = hashlib.sha256(_text(body)).hexdigest()
    return RuleSet(digest[:ID_DIGITS], chains, sets)


def to_json(ruleset: RuleSet) -> bytes:
    """Return the canonical form of *ruleset*."""
    return _text(_dump(ruleset.chains, ruleset.sets))


def from_json(text: bytes) -> RuleSet:
    """Return the rule set whose canonical form is *text*.

    Raises:
        InputError: *text* is not the canonical form of a rule set.
    """
    try:
        body = json.loads(text)
        chains = tuple((Hook(hook), tuple(map(_load_rule, rules))) for hook, rules in body["chains"])
        sets = tuple(map(_load_set, body["sets"]))
        ruleset = identify(chains, sets)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"not a rule set in canonical form: {error!r}; build it with compile_policy"
        raise InputError(message) from None
    if to_json(ruleset) != text:
        message = "not a rule set in canonical form: its text is not canonical"
        raise InputError(message)
    return ruleset


def _text(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), sort_keys=True).encode("ascii")


def _dump(chains: _Chains, sets: tuple[RangeSet, ...]) -> dict[str, Any]:
    return {
        "chains": [[hook.value, [_dump_rule(rule) for rule in rules]] for hook, rules in chains],
        "sets": [[s.name, int(s.family), [str(n) for n in s.networks]] for s in sets],
    }


def _dump_rule(rule: Rule) -> list[Any]:
    match = {f.name: _dump_value(getattr(rule.match, f.name)) for f in fields(Match)}
    said = {name: value for name, value in match.items() if not (value is None or value is False or value == [])}
    return [said, _dump_action(rule.action), rule.why]


def _dump_value(value: Any) -> Any:  # noqa: ANN401  # a field of Match
    if isinstance(value, tuple):
        return [[p.first, p.last] for p in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _dump_action(action: Action) -> list[Any]:
    match action:
        case Redirect(port):
            return ["redirect", port]
        case Zone(number):
            return ["zone", number]
        case Bypass():
            return ["bypass"]
        case Nothing():
            return ["nothing"]


def _load_action(name: str, *numbers: int) -> Action:
    if name in _PORTED:
        (number,) = numbers
        return _PORTED[name](number)
    if numbers:
        message = f"action {name!r} takes no number"
        raise ValueError(message)
    return _PLAIN[name]()


def _load_rule(data: list[Any]) -> Rule:
    raw, action, why = data
    match = dict(raw)
    if "family" in match:
        match["family"] = Family(match["family"])
    if "protocol" in match:
        match["protocol"] = Protocol(match["protocol"])
    if "/" in str(match.get("destination", "")):
        match["destination"] = ip_network(match["destination"])
    if "ports" in match:
        match["ports"] = tuple(PortRange(first, last) for first, last in match["ports"])
    return Rule(Match(**match), _load_action(*action), why)


def _load_set(data: list[Any]) -> RangeSet:
    name, family, networks = data
    return RangeSet(name, Family(family), tuple(map(ip_network, networks)))
