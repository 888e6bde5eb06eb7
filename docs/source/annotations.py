"""``annotations.md``: every key that a pod may carry."""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from docs.source.markdown import code, page, table
from nodeagent.model import Mode, Ports, Ranges
from nodeagent.policy import Configuration
from nodeagent.policy.dialects import CANONICAL, DIALECTS, NETNS, SIDECARS, Field
from nodeagent.policy.fields import WORDS
from nodeagent.policy.grammar import ANNOTATION


class Meaning(NamedTuple):
    """What a field's value looks like, and what it does."""

    grammar: str
    effect: str


RANGES: Final = "ranges"
PORTS: Final = "ports"

MEANINGS: Final[Mapping[Field, Meaning]] = {
    Field.MODE: Meaning(
        ", ".join(map(code, WORDS)),
        "`enabled` programs the pod, `observe` only counts, `disabled` does neither. May be a label as well; the annotation wins.",
    ),
    Field.INCLUDE_RANGES: Meaning(
        f"`*` or {RANGES}",
        "What is intercepted. Empty is *nothing*, absent is the configuration's. Replaces the configuration's.",
    ),
    Field.EXCLUDE_RANGES: Meaning(
        RANGES, "What bypasses the sidecar. Added to the configuration's; wins over every inclusion."
    ),
    Field.INCLUDE_PORTS: Meaning(
        PORTS, "Intercepted whatever their address, unless that is excluded. Replaces the configuration's."
    ),
    Field.EXCLUDE_PORTS: Meaning(PORTS, "Bypass the sidecar, TCP and UDP. Added to the configuration's."),
    Field.EXCLUDE_INTERFACES: Meaning(
        "names of devices",
        "What leaves through them bypasses the sidecar, before every other rule. Added to the configuration's.",
    ),
    Field.PROXY_PORT: Meaning("a port", "Where the sidecar takes redirected connections."),
    Field.PROXY_UIDS: Meaning("numbers", "Whose traffic is the sidecar's own, and is let through."),
    Field.PROXY_GIDS: Meaning("numbers", "The same, by group."),
    Field.DNS_CAPTURE: Meaning(
        "`true`, `false`", "Port 53, TCP and UDP, goes to the sidecar's DNS port, a resolver on loopback included."
    ),
}

OTHERS: Final[Mapping[str, Meaning]] = {
    SIDECARS: Meaning(
        "names of containers",
        "Which containers of the pod are its sidecar, where the configuration's `proxy.containers` does not know them.",
    ),
    NETNS: Meaning(
        "a path or a PID",
        "Names the pod's network namespace. Honoured in a directory of manifests only (`--pods-dir`), never from a cluster.",
    ),
}


def annotations() -> str:
    """Return the page."""
    return page(
        "Annotations",
        _INTRODUCTION,
        _canonical(),
        _GRAMMAR.format(characters=ANNOTATION.characters, entries=ANNOTATION.entries),
        _dialects(),
    )


def _canonical() -> str:
    keys = {field: key for key, field in DIALECTS[CANONICAL].fields.items()}
    rows = [
        (code(keys[field]), meaning.grammar, code(_default(field)) or "", meaning.effect)
        for field, meaning in MEANINGS.items()
    ]
    rows += [(code(key), meaning.grammar, "", meaning.effect) for key, meaning in OTHERS.items()]
    return table(("key", "value", "default", "effect"), rows)


def _default(field: Field) -> str:
    """Return what holds where neither the pod nor the configuration says anything."""
    value = getattr(Configuration().policy, field.value)
    if isinstance(value, Mode):
        return next(word for word, mode in WORDS.items() if mode is value)
    if isinstance(value, Ranges) and value.every:
        return value.every.value
    if isinstance(value, Ranges | Ports | tuple):
        items = value.items if isinstance(value, Ranges | Ports) else value
        return ",".join(map(str, items)) or "(none)"
    return str(value).lower()


def _dialects() -> str:
    parts = ["## Other meshes' keys", _OF_OTHERS.strip()]
    parts += [part for name in DIALECTS if name != CANONICAL for part in _dialect(name)]
    return "\n\n".join(parts)


def _dialect(name: str) -> Iterator[str]:
    dialect, own = DIALECTS[name], {field: key for key, field in DIALECTS[CANONICAL].fields.items()}
    yield f"### `{name}`"
    yield table(("their key", "means"), [(code(key), code(own[field])) for key, field in dialect.fields.items()])
    yield "Known, and not for us: " + ", ".join(code(key) for key in sorted(dialect.not_ours)) + "."


_INTRODUCTION = """
What a pod says about its own egress. A key is read when the pod is first seen and whenever it is edited: a running pod follows, and no connection that is open is reset by it.
`nodeagent policy -f pod.yaml` says what was understood, from where, and what was refused.
"""

_GRAMMAR = """
## Grammar

- **Ranges**: a comma list of CIDRs (`10.0.0.0/8`, `2001:db8::/32`), addresses, or `@name` for a named range of the configuration; both families mixed. Host bits are masked off, with a warning.
- **Ports**: a comma list of `N`, `N-M` or `N:M`, from 0 to 65535.
- Blanks around entries, and empty entries, are ignored. ASCII only; numbers without sign and without leading zeros.
- A value has at most {characters} characters and {entries} entries.
- Anything else is refused **whole**, never half. The error names key, entry and position; the pod's keys then count as absent, and a running pod keeps the rules that it has. An Event on the pod and
  `nodeagent_annotation_rejections_total` say so.
- A key that looks like one of these, and is none, sets nothing: that is a warning, which names the key that was probably meant.
"""

_OF_OTHERS = """
So that the agent fits into a mesh that is there already. Which dialects are understood is the configuration's `dialects`; where both set a field, the canonical key wins.
"""
