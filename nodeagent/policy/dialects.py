"""Which annotation sets which field, in our own words and in other meshes'.

A table, and one function that sorts a pod's annotations by it.  Values are not looked at here.
The canonical key of a field wins over any other mesh's.
"""

from collections.abc import Iterable, Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class Dialect:
    """One mesh's annotations: keys that set a field, and known ones that are not for us."""

    fields: Mapping[str, Field]
    not_ours: frozenset[str] = frozenset()


DIALECTS: Mapping[str, Dialect] = {
    CANONICAL: Dialect(
        fields={
            "nodeagent.io/intercept": Field.MODE,
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
        not_ours=frozenset({NETNS}),
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


@dataclass(frozen=True, slots=True)
class Recognised:
    """A pod's annotations, sorted: the key that sets each field, and keys that set nothing.

    ``unknown_keys`` are escaped and cut.
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
    unknown, advice = _unknown(annotations, [DIALECTS[name] for name in order])
    return Recognised(keys, unknown, (*warnings, *advice))


def _unknown(annotations: Iterable[str], dialects: Iterable[Dialect]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the misspelt keys under our own prefix, and a warning for the first of them."""
    known = [key for dialect in dialects for key in (*dialect.fields, *dialect.not_ours)]
    ours = set(known) | set(DIALECTS[CANONICAL].fields) | {NETNS}
    unknown = sorted(key for key in annotations if key.startswith(_OURS) and key not in ours)
    warnings = [
        f"{printable(key)} is not a known annotation and sets nothing{_suggestion(key, known)}"
        for key in unknown[:_REPORTED]
    ]
    if len(unknown) > _REPORTED:
        warnings.append(f"{len(unknown) - _REPORTED} more unknown annotations set nothing")
    return tuple(printable(key) for key in unknown), tuple(warnings)


def _suggestion(key: str, known: Sequence[str]) -> str:
    if len(key) > _LONGEST_KEY:
        return ""
    spelt = {_plain(name): name for name in reversed(known)}
    close = get_close_matches(_plain(key), spelt, n=2, cutoff=0.75)
    return f": did you mean {' or '.join(spelt[name] for name in close)}?" if close else ""


def _plain(key: str) -> str:
    """Return the name in *key* as one compares spellings: without case and dashes."""
    return key[key.index("/") + 1 :].lower().replace("-", "").replace("_", "")
