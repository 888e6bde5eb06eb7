"""The cluster configuration as it is written: every key, its type and its default.

Frozen structs that msgspec fills and checks; what a type cannot say is checked in
:mod:`nodeagent.policy.configuration`.
"""

from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from nodeagent.model import Ipv6Mode, Mode
from nodeagent.policy.dialects import DIALECTS, INTERCEPT
from nodeagent.policy.grammar import HIGHEST_ID, HIGHEST_PORT

Port = Annotated[int, msgspec.Meta(ge=1, le=HIGHEST_PORT)]
Owner = Annotated[int, msgspec.Meta(ge=0, le=HIGHEST_ID)]
# What they may be is said in errors (nodeagent.policy.misfit); more than their type is checked where they are read.
RangeList = Annotated[str, msgspec.Meta(description="text in quotes: IP ranges, separated by commas")]
PortList = Annotated[str, msgspec.Meta(description="text in quotes: ports or ranges of them, separated by commas")]
NameList = Annotated[str, msgspec.Meta(description="text in quotes: names of devices, separated by commas")]
RangeText = Annotated[str, msgspec.Meta(description="a CIDR (10.0.0.0/8, 2001:db8::/32) or an address")]
DialectName = Annotated[str, msgspec.Meta(description=" or ".join(DIALECTS))]
ContainerName = Annotated[str, msgspec.Meta(description="a container's name, such as istio-proxy")]
SelectedValue = Annotated[str, msgspec.Meta(description="a value in quotes, or '*' for any")]
Selector: TypeAlias = dict[str, tuple[SelectedValue, ...]]
RuntimeSocket = Annotated[str, msgspec.Meta(description="a path that begins with /, or off")]
Listener = Annotated[str, msgspec.Meta(description="ADDRESS:PORT, such as 127.0.0.1:9641 or [::]:9640")]


class _Section(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A mapping of the file: its keys are camelCase, and no others are allowed."""


class Proxy(_Section, frozen=True):
    """Where the sidecar listens, and how its own traffic is told."""

    port: Port = 15001
    dns_port: Port = 15053
    uids: tuple[Owner, ...] = (1337,)
    gids: tuple[Owner, ...] = (1337,)
    ipv6: Ipv6Mode = Ipv6Mode.INTERCEPT
    containers: tuple[ContainerName, ...] = (
        "istio-proxy",
        "linkerd-proxy",
        "kuma-sidecar",
        "consul-dataplane",
        "envoy",
        "envoy-sidecar",
    )
    init_containers: tuple[ContainerName, ...] = (
        "istio-init",
        "linkerd-init",
        "kuma-init",
        "consul-connect-inject-init",
        "osm-init",
    )


class Defaults(_Section, frozen=True):
    """What holds for a pod without annotations; lists in the annotations' own grammar."""

    include_outbound_ip_ranges: RangeList = msgspec.field(name="includeOutboundIPRanges", default="*")
    exclude_outbound_ip_ranges: RangeList = msgspec.field(name="excludeOutboundIPRanges", default="")
    include_outbound_ports: PortList = ""
    exclude_outbound_ports: PortList = ""
    exclude_interfaces: NameList = ""
    dns_capture: bool = False


class WidestExclude(_Section, frozen=True):
    """The shortest prefix that a pod's exclusions may add up to, per family; 0: any."""

    ipv4: Annotated[int, msgspec.Meta(ge=0, le=32)] = 0
    ipv6: Annotated[int, msgspec.Meta(ge=0, le=128)] = 0


class Guard(_Section, frozen=True):
    """How far a pod's annotations may go."""

    widest_exclude: WidestExclude = WidestExclude()


class LedgerSettings(_Section, frozen=True):
    """How many destinations are told apart in metrics."""

    top_destinations: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 15
    series_limit: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000


class Http(_Section, frozen=True):
    """Where the agent listens: ``ADDRESS:PORT``, IPv6 addresses in brackets."""

    metrics: Listener = "[::]:9640"
    ui: Listener = "127.0.0.1:9641"


class Resync(_Section, frozen=True):
    """How often what stands in the kernel is compared with what should, events or no events."""

    seconds: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 10


NO_SOCKET: Final = "off"
_OPTED_IN: Final = {INTERCEPT: ("enabled", "observe")}


class OptInSettings(_Section, frozen=True):
    """Which pods of the API server are ours: any match is enough (see :mod:`nodeagent.policy.opting`)."""

    sidecars: bool = True
    annotations: Selector = msgspec.field(default_factory=lambda: dict(_OPTED_IN))
    labels: Selector = msgspec.field(default_factory=lambda: dict(_OPTED_IN))


class NamespaceSettings(_Section, frozen=True):
    """What one namespace has its own way; what is left out is the cluster's."""

    mode: Mode | msgspec.UnsetType = msgspec.UNSET
    opt_in: bool | msgspec.UnsetType = msgspec.UNSET


class KubernetesSettings(_Section, frozen=True):
    """How the agent behaves towards the API server."""

    start_jitter_seconds: Annotated[int, msgspec.Meta(ge=0, le=600)] = 60
    events: bool = True
    service_ranges: tuple[RangeText, ...] = ()


class RuntimeSettings(_Section, frozen=True):
    """How the agent hears of pods that start: the container runtime's NRI socket (a path, or ``off``)."""

    nri: RuntimeSocket = "/var/run/nri/nri.sock"


class Settings(_Section, frozen=True):
    """The whole file."""

    mode: Mode = Mode.ENFORCE
    suspend: bool = False  # the kill switch: nothing is programmed, whatever anybody else says; pods are observed
    proxy: Proxy = Proxy()
    defaults: Defaults = Defaults()
    dialects: tuple[DialectName, ...] = ("nodeagent", "istio")
    guard: Guard = Guard()
    backend: Literal["auto", "nft", "legacy"] = "auto"
    ranges: dict[str, tuple[RangeText, ...]] = {}
    ledger: LedgerSettings = LedgerSettings()
    http: Http = Http()
    resync: Resync = Resync()
    opt_in: OptInSettings = OptInSettings()
    namespaces: dict[str, NamespaceSettings] = {}
    kubernetes: KubernetesSettings = KubernetesSettings()
    runtime: RuntimeSettings = RuntimeSettings()
