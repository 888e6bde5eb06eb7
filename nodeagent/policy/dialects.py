"""Which annotation sets which field, in our own words and in other meshes'.

A table, and one function that sorts a pod's annotations by it.  Values are not looked at here.
The canonical key of a field wins over any other mesh's.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

from nodeagent.errors import printable


class Field(StrEnum):
    """The fields of a :class:`~nodeagent.model.Policy` that a pod can set, by their names."""

    MODE = "mode"
    INCLUDE_RANGES = "include_ranges"
    EXCLUDE_RANGES = "exclude_ranges"
    INCLUDE_PORTS = "include_ports"
    EXCLUDE_PORTS = "exclude_ports"
    EXCLUDE_INTERFACES = "exclude_interfaces"
    PROXY_PORT = "proxy_port"
    PROXY_UIDS = "proxy_uids"
    PROXY_GIDS = "proxy_gids"
    DNS_CAPTURE = "dns_capture"


CANONICAL = "nodeagent"
NETNS = "nodeagent.io/netns"
"""Names a pod's network namespace; only where Pod manifests come from a directory."""
SIDECARS = "nodeagent.io/sidecarContainers"
"""Names the containers of a pod that are its sidecar, where the configuration's list does not know them."""
INTERCEPT = "nodeagent.io/intercept"
"""Opts a pod in or out, and says how far: the one key that may be a label as well."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One mesh's annotations: keys that set a field, and known ones that are not for us."""

    fields: Mapping[str, Field]
    not_ours: frozenset[str] = frozenset()


DIALECTS: Mapping[str, Dialect] = {
    CANONICAL: Dialect(
        fields={
            INTERCEPT: Field.MODE,
            "nodeagent.io/includeOutboundIPRanges": Field.INCLUDE_RANGES,
            "nodeagent.io/excludeOutboundIPRanges": Field.EXCLUDE_RANGES,
            "nodeagent.io/includeOutboundPorts": Field.INCLUDE_PORTS,
            "nodeagent.io/excludeOutboundPorts": Field.EXCLUDE_PORTS,
            "nodeagent.io/excludeInterfaces": Field.EXCLUDE_INTERFACES,
            "nodeagent.io/proxyPort": Field.PROXY_PORT,
            "nodeagent.io/proxyUID": Field.PROXY_UIDS,
            "nodeagent.io/proxyGID": Field.PROXY_GIDS,
            "nodeagent.io/dnsCapture": Field.DNS_CAPTURE,
        },
        not_ours=frozenset({NETNS, SIDECARS}),
    ),
    "istio": Dialect(
        fields={
            "traffic.sidecar.istio.io/includeOutboundIPRanges": Field.INCLUDE_RANGES,
            "traffic.sidecar.istio.io/excludeOutboundIPRanges": Field.EXCLUDE_RANGES,
            "traffic.sidecar.istio.io/includeOutboundPorts": Field.INCLUDE_PORTS,
            "traffic.sidecar.istio.io/excludeOutboundPorts": Field.EXCLUDE_PORTS,
            "traffic.sidecar.istio.io/excludeInterfaces": Field.EXCLUDE_INTERFACES,
        },
        not_ours=frozenset(
            {
                "traffic.sidecar.istio.io/includeInboundPorts",
                "traffic.sidecar.istio.io/excludeInboundPorts",
                "traffic.sidecar.istio.io/kubevirtInterfaces",
            }
        ),
    ),
}


def _prefix(key: str) -> str:
    return key[: key.index("/") + 1]


PREFIXES: tuple[str, ...] = tuple(sorted({_prefix(key) for dialect in DIALECTS.values() for key in dialect.fields}))
"""Annotations that begin otherwise need not be kept."""

_OURS = _prefix(NETNS)
_REPORTED = 16
_LONGEST_KEY = 128
"""Kubernetes allows 63 characters after the prefix; comparing costs the square of the length."""
_EXAMINED = 64
"""Keys of other meshes that are compared with the known ones; a pod may have thousands."""
_ALMOST, _SIMILAR = 0.9, 0.75
"""How alike spellings are, from 0 to 1 (difflib): one letter apart, and near enough to be asked about."""


def may_be_known(key: str) -> bool:
    """Say whether a dialect may have something to say about *key*, be it only that it is misspelt.

    >>> may_be_known("Nodeagent.io/dnsCapture"), may_be_known("example.com/owner")
    (True, False)
    """
    return key.lower().startswith(PREFIXES)


def is_ours(key: str) -> bool:
    """Say whether *key* is one of our own annotations, be it misspelt."""
    return key.lower().startswith(_OURS)


@dataclass(frozen=True, slots=True)
class Recognised:
    """A pod's annotations, sorted: the key that sets each field, and keys that set nothing.

    ``unknown_keys`` are misspelt keys of our own, escaped and cut.
    """

    keys: Mapping[Field, str]
    unknown_keys: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def recognise(annotations: Mapping[str, str], enabled: Sequence[str]) -> Recognised:
    """Find the annotations that count, in the dialects *enabled*, the canonical one first."""
    order = sorted(enabled, key=lambda name: name != CANONICAL)  # stable: theirs stay as listed
    keys: dict[Field, str] = {}
    warnings: list[str] = []
    for name in order:
        for key, field in DIALECTS[name].fields.items():
            if key not in annotations:
                continue
            winner = keys.setdefault(field, key)
            if annotations[winner] != annotations[key]:
                warnings.append(f"{key} is ignored: {winner} says it already")
    warnings.extend(_switched_off(annotations, order, keys))
    unknown = sorted(key for key in annotations if key.lower().startswith(_OURS) and key not in _KNOWN)
    misspelt = [*unknown, *_misspelt_of_others(annotations)]
    warnings.extend(_advice(misspelt, [key for name in order for key in _keys(DIALECTS[name])]))
    return Recognised(keys, tuple(map(printable, unknown)), tuple(warnings))


def _keys(dialect: Dialect) -> tuple[str, ...]:
    return (*dialect.fields, *sorted(dialect.not_ours))


_KNOWN = frozenset(key for dialect in DIALECTS.values() for key in _keys(dialect))


def _switched_off(annotations: Mapping[str, str], order: Sequence[str], keys: Mapping[Field, str]) -> Iterator[str]:
    """Yield a warning for each key that would say something else, were its dialect on."""
    for name in sorted(DIALECTS.keys() - set(order)):
        for key, field in DIALECTS[name].fields.items():
            if key not in annotations or annotations.get(keys.get(field, "")) == annotations[key]:
                continue
            instead = [known for on in order for known, other in DIALECTS[on].fields.items() if other is field]
            meant = f": {instead[0]} would count" if instead else ""
            yield f"{key} sets nothing, because the configuration's dialects leave {name} out{meant}"


def _misspelt_of_others(annotations: Iterable[str]) -> list[str]:
    """Return keys under other meshes' prefixes that look like one that sets a field, and not like another of theirs.

    What looks like neither may be one that a later version of that mesh knows.
    """
    strange = (key for key in annotations if may_be_known(key) and key not in _KNOWN)
    theirs = sorted(key for key in strange if not key.lower().startswith(_OURS))[:_EXAMINED]
    return [key for key in theirs if _sets_a_field(_meant(key, _KNOWN, 1))]


def _sets_a_field(keys: Sequence[str]) -> bool:
    return any(key in dialect.fields for key in keys for dialect in DIALECTS.values())


def _advice(misspelt: Sequence[str], known: Sequence[str]) -> Iterator[str]:
    """Yield a warning for the first of the *misspelt* keys, and the number of the others."""
    for key in misspelt[:_REPORTED]:
        close = _meant(key, known, 2)
        hint = f": did you mean {' or '.join(close)}?" if close else ""
        yield f"{printable(key)} is not a known annotation and sets nothing{hint}"
    if len(misspelt) > _REPORTED:
        yield f"{len(misspelt) - _REPORTED} more unknown annotations set nothing"


def _meant(key: str, known: Iterable[str], most: int) -> list[str]:
    """Return which of the *known* keys are spelt like *key*, at most *most*; of one name, the one with its prefix."""
    if len(key) > _LONGEST_KEY:
        return []
    prefix = _prefix(key).lower()
    spelt = {_plain(name): name for name in sorted(known, key=lambda name: (_prefix(name) == prefix, name))}
    plain = _plain(key)
    almost = get_close_matches(plain, spelt, n=1, cutoff=_ALMOST)
    return [spelt[name] for name in almost or get_close_matches(plain, spelt, n=most, cutoff=_SIMILAR)]


def _plain(key: str) -> str:
    """Return the name in *key* as one compares spellings: without case, dashes and underscores."""
    return key[key.index("/") + 1 :].lower().replace("-", "").replace("_", "")
