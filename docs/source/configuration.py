"""``configuration.md``: every key of the cluster configuration."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from docs.source.markdown import block, code, page, table
from nodeagent.policy.settings import Settings

EFFECTS: Final[Mapping[str, str]] = {
    "mode": "Whether pods are programmed, or only watched. A namespace and a pod may say otherwise.",
    "suspend": "The kill switch: nothing is programmed, whatever anybody else says; all pods are only watched.",
    "proxy.port": "Where sidecars take redirected connections.",
    "proxy.dnsPort": "Where they take redirected DNS.",
    "proxy.uids": "Whose traffic is the sidecar's own. Where a pod's sidecar says as whom it runs, that counts instead.",
    "proxy.gids": "The same, by group.",
    "proxy.ipv6": "`intercept` programs IPv6 like IPv4: a sidecar that does not listen there refuses. `bypass` leaves IPv6 alone, and calls it a leak (`ipv6_unmanaged`).",
    "proxy.containers": "Names by which a pod's sidecar is known.",
    "proxy.initContainers": "Names of meshes' own init containers, which redirect by themselves: a pod that has one is observed, never programmed.",
    "defaults.includeOutboundIPRanges": "As the annotation, for all pods; a pod's replaces it.",
    "defaults.excludeOutboundIPRanges": "As the annotation, for all pods; a pod's is added.",
    "defaults.includeOutboundPorts": "As the annotation, for all pods; a pod's replaces it.",
    "defaults.excludeOutboundPorts": "As the annotation, for all pods; a pod's is added.",
    "defaults.excludeInterfaces": "As the annotation, for all pods; a pod's is added.",
    "defaults.dnsCapture": "As the annotation, for all pods; a pod's replaces it.",
    "dialects": "Whose annotations are understood.",
    "guard.widestExclude.ipv4": "The shortest prefix that all exclusions of a pod may add up to; `8` refuses to exclude more than a /8. 0: any.",
    "guard.widestExclude.ipv6": "The same for IPv6.",
    "backend": "How rules reach the kernel. `auto` goes by what the pod's namespace uses already, and prefers nft.",
    "ranges": "Names for IP ranges: `{payments-db: [10.20.0.0/16]}`. Annotations may say `@payments-db`, and metrics call destinations by them.",
    "ledger.topDestinations": "Destinations that are told apart in metrics, a pod; the rest is `other`.",
    "ledger.seriesLimit": "Series by destination that a node exports at most.",
    "http.metrics": "Open to the cluster: `/metrics`, `/healthz`, `/readyz`. Read at the start only.",
    "http.ui": "For those who may look inside: the page and `/api/v1`. Read at the start only.",
    "resync.seconds": "How often what stands in the kernel is compared with what should, events or no events.",
    "optIn.sidecars": "A pod that has a sidecar (`proxy.containers`) is ours.",
    "optIn.annotations": "A pod with one of these annotations and values is ours.",
    "optIn.labels": "A pod with one of these labels and values is ours.",
    "namespaces": "What a namespace has its own way, by its name.",
    "namespaces.NAME.mode": "As `mode`, for the pods of this namespace.",
    "namespaces.NAME.optIn": "Whether all pods of this namespace are ours, or none but those that opt in themselves.",
    "kubernetes.serviceRanges": "Where Services live. An address in one of these ranges is called by its Service's name, which the agent asks the API server for, one object (`ipaddresses.networking.k8s.io`, Kubernetes 1.33 and newer) at a time, and keeps for an hour. Empty: nobody is asked.",
    "kubernetes.startJitterSeconds": "The longest that an agent waits before its first list, so that not all nodes ask at once.",
    "runtime.nri": "The container runtime's NRI socket: a pod's first container waits there until the pod's rules stand. `off`: the agent hears of pods from the API server only, some milliseconds later. Read at the start only.",
    "kubernetes.events": "Whether what is wrong with a pod's annotations is said in an Event on the pod.",
}

EXAMPLE: Final = """\
mode: observe                                   # watch everything, program nothing
namespaces:
  shop: {mode: enforce, optIn: true}            # but here
proxy: {uids: [1337], gids: [1337], ipv6: intercept}
defaults:
  excludeOutboundIPRanges: "169.254.169.254, @payments-db"
  excludeOutboundPorts: "9100"
ranges:
  payments-db: [10.20.0.0/16, "fd00:20::/32"]
guard: {widestExclude: {ipv4: 8, ipv6: 32}}     # nobody excludes more than that
"""


def configuration() -> str:
    """Return the page."""
    rows = [(code(path), kind, code(default) if default else "", EFFECTS[path]) for path, kind, default in keys()]
    return page(
        "Configuration",
        _INTRODUCTION,
        block(EXAMPLE, "yaml"),
        "## Keys",
        table(("key", "value", "default", "effect"), rows),
    )


def keys(struct: type[msgspec.Struct] = Settings, above: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield each key of the file: its path, what it may be, its default."""
    kind = msgspec.inspect.type_info(struct)
    assert isinstance(kind, msgspec.inspect.StructType)  # noqa: S101  # it is one
    for field in kind.fields:
        path = above + field.encode_name
        if isinstance(field.type, msgspec.inspect.StructType):
            yield from keys(field.type.cls, path + ".")
            continue
        yield path, _kind(field.type), _default(field)
        if isinstance(field.type, msgspec.inspect.DictType) and isinstance(
            field.type.value_type, msgspec.inspect.StructType
        ):
            yield from keys(field.type.value_type.cls, f"{path}.NAME.")


def _default(field: msgspec.inspect.Field) -> str:
    value = field.default
    if value is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    return "" if value in (msgspec.UNSET, msgspec.NODEFAULT) else msgspec.json.encode(value).decode()


def _kind(kind: msgspec.inspect.Type) -> str:  # noqa: PLR0911  # one for each kind of type
    """Return what a value may be."""
    match kind:
        case msgspec.inspect.Metadata(type=inner, extra_json_schema=extra):
            return str((extra or {}).get("description") or _kind(inner))
        case msgspec.inspect.EnumType(cls=cls):
            return ", ".join(code(member.value) for member in cls)
        case msgspec.inspect.LiteralType(values=values):
            return ", ".join(map(code, values))
        case msgspec.inspect.VarTupleType(item_type=item):
            return f"list: {_kind(item)}"
        case msgspec.inspect.DictType(value_type=value):
            return f"mapping of names: {_kind(value)}"
        case msgspec.inspect.UnionType(types=types):
            return " or ".join(_kind(one) for one in types if not _is_unset(one))
    return _plain(kind)


def _is_unset(kind: Any) -> bool:  # noqa: ANN401  # msgspec gives UnsetType a type of its own
    return "Unset" in type(kind).__name__


def _plain(kind: msgspec.inspect.Type) -> str:
    match kind:
        case msgspec.inspect.BoolType():
            return "`true`, `false`"
        case msgspec.inspect.IntType(ge=low, le=high):
            return f"{low} to {high}"
        case msgspec.inspect.StructType():
            return "what follows"
        case msgspec.inspect.StrType():
            return "text"
    raise TypeError(f"{kind}: say how such a key is described")


_INTRODUCTION = """
One YAML file: `nodeagent run --config FILE`; in a cluster, a ConfigMap. Every key has a default, and an empty file is a good one. An unknown key, a value of another type or a second document is refused, with file, line and
key; a running agent then keeps the last good one, and says so (`/readyz`, `nodeagent_config_reloads_total`). An edit is in force within a second or two, for running pods as well, unless its key says otherwise.
"""
