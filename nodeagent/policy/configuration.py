"""The cluster configuration: one YAML text into what holds for every pod.

Promises: a :class:`Configuration` in which every range, port and name has been checked, or an
:class:`InputError` of one line that names file, line and path.  Refuses unknown keys, duplicate
keys, wrong types, and whatever :mod:`nodeagent.policy.document` refuses.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_address

import msgspec

from nodeagent.errors import InputError, printable
from nodeagent.model import Family, Network, Policy
from nodeagent.policy.dialects import DIALECTS, Field
from nodeagent.policy.document import Node, decode, read_documents
from nodeagent.policy.fields import Given, read_field
from nodeagent.policy.grammar import CONFIGURATION, HIGHEST_PORT, RejectedError, Text
from nodeagent.policy.misfit import Path, find_misfit, spell
from nodeagent.policy.ranges import NAME_RE, RangeError, parse_range
from nodeagent.policy.settings import NO_SOCKET, Settings

LARGEST = 1024 * 1024
"""Bytes: as much as a ConfigMap holds."""

_RANGE_ALLOWED = "use a CIDR (10.0.0.0/8, 2001:db8::/32) or an address"
_DNS_LABEL_RE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LABEL = "at most 63 of a-z, 0-9 and '-', not '-' at an end"
_QUALIFIED_RE = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
)
_LISTENER_RE = re.compile(r"(?:\[([0-9A-Fa-f:]+)\]|([0-9.]+)):(0|[1-9][0-9]{0,4})")

_DEFAULTS = {
    Field.INCLUDE_RANGES: ("includeOutboundIPRanges", "include_outbound_ip_ranges"),
    Field.EXCLUDE_RANGES: ("excludeOutboundIPRanges", "exclude_outbound_ip_ranges"),
    Field.INCLUDE_PORTS: ("includeOutboundPorts", "include_outbound_ports"),
    Field.EXCLUDE_PORTS: ("excludeOutboundPorts", "exclude_outbound_ports"),
    Field.EXCLUDE_INTERFACES: ("excludeInterfaces", "exclude_interfaces"),
}
"""The keys of ``defaults`` that are text, in the grammar of the annotation of that field."""

_SETTINGS_OF_POLICY = {
    "mode": "mode",
    "proxy_port": "proxy.port",
    "proxy_uids": "proxy.uids",
    "proxy_gids": "proxy.gids",
    "dns_capture": "defaults.dnsCapture",
    "dns_port": "proxy.dnsPort",
    "ipv6": "proxy.ipv6",
}
"""Fields of a policy that the file gives as they are, and where."""

_FIELDS = (*(name.value for name in Field), "dns_port", "ipv6")
_DEFAULT_SETTINGS = Settings()
_DEFAULT_POLICY = Policy(sources=dict.fromkeys(_FIELDS, "default"))


@dataclass(frozen=True)
class Configuration:
    """The cluster configuration, checked.

    ``settings`` is what the file says, ``policy`` what it means for a pod without annotations.
    ``ranges`` are the named ones, each sorted and free of duplicates, ``service_ranges`` those of
    Services.  Without arguments: what holds where there is no configuration.
    """

    settings: Settings = _DEFAULT_SETTINGS
    policy: Policy = _DEFAULT_POLICY
    ranges: Mapping[str, tuple[Network, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    service_ranges: tuple[Network, ...] = ()

    @property
    def backend(self) -> str:
        """How rules are to be made: ``auto``, ``nft`` or ``legacy``."""
        return self.settings.backend

    @cached_property
    def widest_exclude(self) -> Mapping[Family, int]:
        """The guard: the shortest prefix that a pod's exclusions may add up to; 0 for any."""
        widest = self.settings.guard.widest_exclude
        return {Family.V4: widest.ipv4, Family.V6: widest.ipv6}


def read_configuration(raw: str | bytes, name: str = "configuration") -> Configuration:
    """Return what *raw* says; an empty text says that every default holds.

    >>> read_configuration("proxy: {port: 4140}").policy.proxy_port
    4140

    Raises:
        InputError: what is wrong, on which line of *name*, and how to mend it.
    """
    text = decode(raw if isinstance(raw, bytes) else raw.encode(errors="surrogatepass"), name, LARGEST)
    return _Reader(text, name).configuration()


class _Reader:
    """Reads one text; knows the line of each path, for errors."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._lines: dict[Path, int] = {(): 1}
        data = self._plain(self._only_document(text), ())
        if misfit := find_misfit(data, Settings):
            raise self._error(misfit.path, misfit.problem)
        self._settings = msgspec.convert(data, Settings)

    def configuration(self) -> Configuration:
        self._check_words()
        ranges = {name: self._named(name, texts) for name, texts in self._settings.ranges.items()}
        policy, warnings = self._policy(ranges)
        services = self._ranges(("kubernetes", "serviceRanges"), self._settings.kubernetes.service_ranges)
        return Configuration(self._settings, policy, ranges, warnings, services)

    # -- text into structs

    def _only_document(self, text: str) -> Node:
        documents = [node for node in read_documents(text, self._name) if node.value is not None]
        if len(documents) > 1:
            raise InputError(
                f"{self._name}:{documents[1].line}: a second document: a configuration is one YAML document"
            )
        node = documents[0] if documents else Node({}, 1)
        if not isinstance(node.value, Mapping):
            raise InputError(f"{self._name}:{node.line}: {node.kind}, where a mapping of settings should be")
        return node

    def _plain(self, node: Node, path: Path) -> object:
        """Return *node* as plain data, and note the lines of all paths."""
        self._lines[path] = node.line
        match node.value:
            case Mapping() as items:
                return {key: self._plain(item, (*path, key)) for key, item in items.items()}
            case tuple() as entries:
                return [self._plain(entry, (*path, number)) for number, entry in enumerate(entries)]
            case scalar:
                return scalar

    def _error(self, path: Path, problem: str) -> InputError:
        """Return the error for *path*, with its line or that of the nearest one around it."""
        known = path
        while known not in self._lines:
            known = known[:-1]
        return InputError(f"{self._name}:{self._lines[known]}: {printable(spell(path))}: {printable(problem, 300)}")

    # -- what types cannot say

    def _check_words(self) -> None:
        settings = self._settings
        for n, dialect in enumerate(settings.dialects):
            if dialect not in DIALECTS:
                raise self._error(("dialects", n), f"no such dialect: use {' or '.join(DIALECTS)}")
        if not settings.proxy.uids and not settings.proxy.gids:
            raise self._error(("proxy",), "uids and gids are both empty, and the proxy's own traffic would loop")
        for name in settings.ranges:
            if not NAME_RE.fullmatch(name):
                raise self._error(
                    ("ranges", name), "a name is at most 63 of a-z, 0-9, '.' and '-', not '.' or '-' at an end"
                )
        self._check_selectors()
        if settings.runtime.nri != NO_SOCKET and not settings.runtime.nri.startswith("/"):
            raise self._error(("runtime", "nri"), f"use a path that begins with /, or {NO_SOCKET}")
        for listener in ("metrics", "ui"):
            if not _is_listener(getattr(settings.http, listener)):
                raise self._error(("http", listener), "use ADDRESS:PORT, such as 127.0.0.1:9641 or [::]:9640")

    def _check_selectors(self) -> None:
        """Check what selects pods: a name that no pod can have would be silent for ever."""
        settings = self._settings
        for n, name in enumerate(settings.proxy.containers):
            if not _DNS_LABEL_RE.fullmatch(name):
                raise self._error(("proxy", "containers", n), f"'{printable(name)}' is no container's name: {_LABEL}")
        for name in settings.namespaces:
            if not _DNS_LABEL_RE.fullmatch(name):
                raise self._error(("namespaces", name), f"no namespace has such a name: {_LABEL}")
        for kind in ("annotations", "labels"):
            for key, values in getattr(settings.opt_in, kind).items():
                if not _QUALIFIED_RE.fullmatch(key):
                    raise self._error(("optIn", kind, key), "no such key can be: use NAME or PREFIX/NAME")
                if not values:
                    raise self._error(("optIn", kind, key), "an empty list: name values, or '*' for any")

    def _named(self, name: str, texts: Sequence[str]) -> tuple[Network, ...]:
        if not texts:
            raise self._error(("ranges", name), "an empty list: give it a range, or remove the name")
        return self._ranges(("ranges", name), texts)

    def _ranges(self, path: Path, texts: Sequence[str]) -> tuple[Network, ...]:
        networks: set[Network] = set()
        for n, text in enumerate(texts):
            try:
                networks.add(parse_range(text.strip(" "))[0])
            except RangeError as error:
                raise self._error((*path, n), f"'{printable(text)}' {error}: {_RANGE_ALLOWED}") from error
        return tuple(sorted(networks, key=lambda net: (net.version, int(net.network_address), net.prefixlen)))

    def _policy(self, ranges: Mapping[str, tuple[Network, ...]]) -> tuple[Policy, tuple[str, ...]]:
        settings = self._settings
        warnings: list[str] = []
        policy = Policy(
            mode=settings.mode,
            proxy_port=settings.proxy.port,
            proxy_uids=tuple(sorted(set(settings.proxy.uids))),
            proxy_gids=tuple(sorted(set(settings.proxy.gids))),
            dns_capture=settings.defaults.dns_capture,
            dns_port=settings.proxy.dns_port,
            ipv6=settings.proxy.ipv6,
            sources={name: self._source(_SETTINGS_OF_POLICY.get(name, "")) for name in _FIELDS},
        )
        for name, (key, attribute) in _DEFAULTS.items():
            if ("defaults", key) in self._lines:
                text = Text(f"defaults.{key}", getattr(settings.defaults, attribute), CONFIGURATION)
                policy, advice = self._default(policy, name, Given(text, self._source(text.key), ranges))
                warnings.extend(advice)
        return policy, tuple(warnings)

    def _default(self, policy: Policy, name: Field, given: Given) -> tuple[Policy, tuple[str, ...]]:
        try:
            policy, warnings = read_field(policy, name, given)
        except RejectedError as error:
            problem = error.rejection.message.removeprefix(f"{given.text.key}: ")
            raise self._error(tuple(given.text.key.split(".")), problem) from error
        return policy, tuple(f"{given.source}: {warning}" for warning in warnings)

    def _source(self, path: str) -> str:
        """Return where the setting at *path* came from, in words for people."""
        return f"configuration {path}" if tuple(path.split(".")) in self._lines else "default"


def _is_listener(text: str) -> bool:
    shape = _LISTENER_RE.fullmatch(text)
    if not shape or int(shape[3]) > HIGHEST_PORT:
        return False
    try:
        return ip_address(shape[1] or shape[2]).version == (6 if shape[1] else 4)
    except ValueError:
        return False


DEFAULT = Configuration()
"""What holds where there is no configuration."""
