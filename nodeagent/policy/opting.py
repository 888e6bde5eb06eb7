"""Which pods of a cluster are ours, how far we go with each, and who its proxy is.

Promises: an answer for every pod, with the sentence that explains it; the first match wins:

| # | match | answer |
|---|---|---|
| 1 | hostNetwork | skipped, ``host_network`` |
| 2 | nothing runs in it any more | skipped, ``terminated`` |
| 3 | annotation ``nodeagent.io/intercept`` (else the label of that name) is ``disabled`` | skipped, ``disabled`` |
| 4 | an annotation of ``optIn.annotations`` has one of its values | opted in |
| 5 | a label of ``optIn.labels`` has one of its values | opted in |
| 6 | ``namespaces.NAME.optIn`` is set | opted in, or skipped, ``not_opted_in`` |
| 7 | ``optIn.sidecars``, and a proxy's container stands beside another one | opted in |
| 8 | | skipped, ``not_opted_in`` |

The mode is what ``nodeagent.io/intercept`` says (annotation before label), else
``namespaces.NAME.mode``, else the cluster's ``mode``.  A pod with a mesh's own init container
(``proxy.initContainers``) is observed at most: that redirects, and would do so beside our rules,
which stand before it runs.  Refuses to guess: a word that ``nodeagent.io/intercept`` does not
know neither opts in nor out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import msgspec

from nodeagent.errors import printable
from nodeagent.model import Container, Mode, PodManifest, Policy
from nodeagent.policy.configuration import Configuration
from nodeagent.policy.dialects import CANONICAL, INTERCEPT, SIDECARS, Field
from nodeagent.policy.fields import WORDS
from nodeagent.policy.grammar import ANNOTATION
from nodeagent.policy.settings import NamespaceSettings

MOST_CONTAINERS = 64
"""Containers of a pod that are looked at."""

ANY = "*"
"""In a selector: whatever the value is."""

_NO_SETTINGS = NamespaceSettings()


class Skip(StrEnum):
    """Why a pod is left alone: the label of a gauge, hence a closed set."""

    HOST_NETWORK = "host_network"
    TERMINATED = "terminated"
    DISABLED = "disabled"
    NOT_OPTED_IN = "not_opted_in"


@dataclass(frozen=True, slots=True)
class OptIn:
    """How far to go with a pod, and *why*, in words for people.

    ``mode`` is what holds if none of the pod's annotations is refused; DISABLED where it is
    ``skipped``.  ``base`` is what its annotations are read on top of.  ``redirector`` is a mesh's
    init container in it, if there is one.
    """

    mode: Mode
    why: str
    base: Policy
    skipped: Skip | None = None
    sidecars: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    redirector: str = ""

    def bound(self, policy: Policy) -> Policy:
        """Return *policy* as far as it may be carried out in this pod."""
        if self.skipped:
            return replace(policy, mode=Mode.DISABLED)
        if self.redirector and policy.mode is Mode.ENFORCE:
            why = {Field.MODE.value: f"init container {self.redirector}"}
            return replace(policy, mode=Mode.OBSERVE, sources={**policy.sources, **why})
        return policy


@dataclass(frozen=True, slots=True)
class Keys:
    """Labels and annotations that the answer depends on, besides the dialects' annotations."""

    labels: frozenset[str]
    annotations: frozenset[str]


def deciding_keys(configuration: Configuration) -> Keys:
    """Return what a source has to keep of a pod."""
    selectors = configuration.settings.opt_in
    return Keys(frozenset({*selectors.labels, INTERCEPT}), frozenset(selectors.annotations))


def opt_in(pod: PodManifest, configuration: Configuration) -> OptIn:
    """Say whether *pod* is ours, and why.

    >>> opt_in(PodManifest("web"), Configuration()).why
    'neither an annotation, a label, its namespace nor a sidecar opts it in'
    """
    proxies = find_sidecars(pod, configuration.settings.proxy.containers)
    base = _base(pod, configuration, proxies)
    word, source = _word(pod, configuration)
    skipped, why = _selected(pod, configuration, proxies) if word is not Mode.DISABLED else (Skip.DISABLED, source)
    if gone := _beyond_reach(pod):
        skipped, why = gone
    mode = word or base.mode
    if not skipped and mode is Mode.DISABLED:
        skipped, why = Skip.DISABLED, base.sources["mode"]
    redirector = _redirector(pod, configuration.settings.proxy.init_containers)
    if redirector and mode is Mode.ENFORCE:
        mode = Mode.OBSERVE
    names = tuple(proxy.name for proxy in proxies)
    return OptIn(
        Mode.DISABLED if skipped else mode, why, base, skipped, names, _warnings(pod, proxies, base), redirector
    )


def read_sidecars(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names that the annotation gives; one that no container has is warned of where pods are judged.

    >>> read_sidecars({"nodeagent.io/sidecarContainers": "envoy, ,sds"})
    ('envoy', 'sds')
    """
    value = annotations.get(SIDECARS, "")[: ANNOTATION.characters + 1]
    return tuple(name for item in value.split(",") if (name := item.strip(" ")))[:MOST_CONTAINERS]


def find_sidecars(pod: PodManifest, names: Sequence[str]) -> tuple[Container, ...]:
    """Return the containers of *pod* that are its proxy: those that it names itself, else the known *names*."""
    wanted = pod.sidecars or names
    return tuple(container for container in pod.running if container.name in wanted)


def _redirector(pod: PodManifest, names: Sequence[str]) -> str:
    """Return the init container that redirects; the runtime tells of one when it starts, as of any container."""
    found = (name for name in (*pod.init, *(container.name for container in pod.running)) if name in names)
    return next(found, "")


def _beyond_reach(pod: PodManifest) -> tuple[Skip, str] | None:
    if pod.host_network:
        return Skip.HOST_NETWORK, "it uses the host's network"
    return (Skip.TERMINATED, "nothing runs in it any more") if pod.is_over else None


def _selected(pod: PodManifest, configuration: Configuration, proxies: Sequence[Container]) -> tuple[Skip | None, str]:
    """Return rows 4 to 8: why the pod is left alone, if it is, and what decided that."""
    selectors, namespace = configuration.settings.opt_in, _namespace(pod, configuration)
    if key := _match(selectors.annotations, pod.annotations):
        return None, f"annotation {key}"
    if key := _match(selectors.labels, pod.labels):
        return None, f"label {key}"
    if namespace.opt_in is not msgspec.UNSET:
        skipped = None if namespace.opt_in else Skip.NOT_OPTED_IN
        return skipped, f"configuration namespaces.{pod.namespace}.optIn"
    if not (selectors.sidecars and proxies):
        return Skip.NOT_OPTED_IN, "neither an annotation, a label, its namespace nor a sidecar opts it in"
    if len(proxies) == len(pod.running):
        return Skip.NOT_OPTED_IN, f"{proxies[0].name} stands alone: a gateway, nobody's sidecar"
    return None, f"sidecar {proxies[0].name}"


def _match(selector: Mapping[str, Sequence[str]], found: Mapping[str, str]) -> str | None:
    """Return the first key of *selector* whose value in *found* is one that it names."""
    hits = (key for key, values in selector.items() if key in found and {found[key].strip(" "), ANY} & set(values))
    return next(hits, None)


def _namespace(pod: PodManifest, configuration: Configuration) -> NamespaceSettings:
    return configuration.settings.namespaces.get(pod.namespace, _NO_SETTINGS)


def _word(pod: PodManifest, configuration: Configuration) -> tuple[Mode | None, str]:
    """Return the mode that the pod itself asks for, if it does and we know the word; and where."""
    if CANONICAL in configuration.settings.dialects and INTERCEPT in pod.annotations:
        return WORDS.get(pod.annotations[INTERCEPT].strip(" ")), f"annotation {INTERCEPT}"
    return WORDS.get(pod.labels.get(INTERCEPT, "")), f"label {INTERCEPT}"


def _base(pod: PodManifest, configuration: Configuration, proxies: Sequence[Container]) -> Policy:
    """Return the cluster's policy with what is the namespace's, the pod's label's and the sidecar's own."""
    policy, sources = configuration.policy, {}
    mode, uids, gids = policy.mode, policy.proxy_uids, policy.proxy_gids
    if by_label := WORDS.get(pod.labels.get(INTERCEPT, "")):
        mode, sources[Field.MODE.value] = by_label, f"label {INTERCEPT}"
    elif (by_namespace := _namespace(pod, configuration).mode) is not msgspec.UNSET:
        mode, sources[Field.MODE.value] = by_namespace, f"configuration namespaces.{pod.namespace}.mode"
    if owners := _owners(proxies):
        uids, gids = owners
        by_sidecar = f"container {', '.join(proxy.name for proxy in proxies)}"
        sources |= {Field.PROXY_UIDS.value: by_sidecar, Field.PROXY_GIDS.value: by_sidecar}
    if not sources:
        return policy  # one object for most pods
    return replace(policy, mode=mode, proxy_uids=uids, proxy_gids=gids, sources={**policy.sources, **sources})


def _owners(proxies: Iterable[Container]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the uids and gids by which the proxies' own traffic is told; None where their images decide.

    Root is no way to tell a proxy, if there is a better one: everything else that runs as root would bypass it.
    """
    uids: set[int] = set()
    gids: set[int] = set()
    for proxy in proxies:
        if proxy.uid is None and not proxy.gid:
            return None
        uids.update(() if proxy.uid is None else (proxy.uid,))
        gids.update((proxy.gid,) if proxy.gid else ())
    if gids:
        uids.discard(0)
    return (tuple(sorted(uids)), tuple(sorted(gids))) if uids or gids else None


def _warnings(pod: PodManifest, proxies: Sequence[Container], base: Policy) -> tuple[str, ...]:
    """Return what hardly anybody means."""
    warnings = []
    label = pod.labels.get(INTERCEPT)
    if label is not None and label not in WORDS:
        warnings.append(f"label {INTERCEPT}: '{printable(label)}' says nothing: use {', '.join(WORDS)}")
    if missing := [name for name in pod.sidecars if name not in {container.name for container in pod.running}]:
        warnings.append(f"no container is called {printable(', '.join(missing))}")
    if proxies and 0 in base.proxy_uids:
        warnings.append("its sidecar runs as root: everything that runs as root bypasses it")
    return tuple(warnings)
