"""The cluster configuration: defaults, what each key does, and errors that name line and path."""

import re
from ipaddress import ip_network

import msgspec
import pytest

from nodeagent.errors import InputError
from nodeagent.model import Mode
from nodeagent.policy import DEFAULT, read_configuration, resolve
from nodeagent.policy.grammar import Text
from nodeagent.policy.ranges import parse_ranges
from nodeagent.policy.settings import Settings

EVERY_KEY = """\
mode: enforce
suspend: false
proxy:
  port: 15001
  dnsPort: 15053
  uids: [1337]
  gids: [1337]
  ipv6: intercept
  containers: [istio-proxy, linkerd-proxy, kuma-sidecar, consul-dataplane, envoy, envoy-sidecar]
  initContainers: [istio-init, linkerd-init, kuma-init, consul-connect-inject-init, osm-init]
defaults:
  includeOutboundIPRanges: "*"
  excludeOutboundIPRanges: ""
  includeOutboundPorts: ""
  excludeOutboundPorts: ""
  excludeInterfaces: ""
  dnsCapture: false
dialects: [nodeagent, istio]
guard: {widestExclude: {ipv4: 0, ipv6: 0}}
backend: auto
ranges: {}
ledger: {topDestinations: 15, seriesLimit: 10000}
http: {metrics: "[::]:9640", ui: "127.0.0.1:9641"}
resync: {seconds: 10}
optIn:
  sidecars: true
  annotations: {nodeagent.io/intercept: [enabled, observe]}
  labels: {nodeagent.io/intercept: [enabled, observe]}
namespaces: {}
kubernetes: {startJitterSeconds: 60, events: true, serviceRanges: []}
runtime: {nri: /var/run/nri/nri.sock}
"""


@pytest.mark.parametrize("text", ["", "{}", "---\n", "# all defaults\n", "null"])
def test_an_empty_file_means_the_defaults(text: str) -> None:
    assert read_configuration(text) == DEFAULT


def test_every_key_and_its_default() -> None:
    written = read_configuration(EVERY_KEY)
    assert written.settings == DEFAULT.settings
    assert msgspec.json.decode(msgspec.json.encode(written.settings)) == msgspec.yaml.decode(EVERY_KEY)
    sources = set(written.policy.sources.values())
    assert all(source == "default" or source.startswith("configuration ") for source in sources)
    assert {**vars(written.policy), "sources": None, "include_ranges": None} == {
        **vars(DEFAULT.policy),
        "sources": None,
        "include_ranges": None,
    }


def test_settings_reach_the_policy() -> None:
    configuration = read_configuration("""
mode: observe
proxy: {port: 4140, dnsPort: 4153, uids: [2102, 7, 7], gids: [], ipv6: bypass}
defaults: {includeOutboundIPRanges: "@local, 2001:db8::/32", excludeOutboundPorts: "25,4190-4191", dnsCapture: true}
ranges: {local: [10.1.2.3/8, 192.168.0.0/16, 10.0.0.0/8]}
""")
    policy = configuration.policy
    assert (policy.mode, policy.proxy_port, policy.dns_port, policy.dns_capture) == (Mode.OBSERVE, 4140, 4153, True)
    assert (policy.proxy_uids, policy.proxy_gids, policy.ipv6) == ((7, 2102), (), "bypass")
    assert [str(net) for net in policy.include_ranges] == ["10.0.0.0/8", "192.168.0.0/16", "2001:db8::/32"]
    assert [str(ports) for ports in policy.exclude_ports] == ["25", "4190-4191"]
    assert configuration.ranges == {"local": (ip_network("10.0.0.0/8"), ip_network("192.168.0.0/16"))}
    assert policy.include_ranges.items[0].source == "configuration defaults.includeOutboundIPRanges (@local)"
    assert policy.sources["proxy_port"] == "configuration proxy.port"
    assert policy.sources["exclude_ranges"] == "default"


def test_host_bits_in_a_default_are_a_warning() -> None:
    (warning,) = read_configuration("defaults: {excludeOutboundIPRanges: 10.1.2.3/8}").warnings
    assert warning.startswith("configuration defaults.excludeOutboundIPRanges: '10.1.2.3/8' was read as 10.0.0.0/8")


def test_ten_thousand_ranges_are_not_too_many() -> None:
    ranges = [f"10.{i // 256}.{i % 256}.0/24" for i in range(0, 20_000, 2)]
    text = f"ranges: {{big: [{', '.join(ranges)}]}}\ndefaults:\n  excludeOutboundIPRanges: {','.join(ranges)}"
    configuration = read_configuration(text)
    assert len(configuration.ranges["big"]) == 10_000
    assert len(configuration.policy.exclude_ranges.items) == 10_000


def test_a_name_is_expanded_once_however_often_it_is_written() -> None:
    """2,048 times the name of 10,000 ranges is nobody's policy, and must not be twenty million ranges."""
    configuration = read_configuration(f"ranges: {{big: [{', '.join(f'10.0.{i}.0/24' for i in range(256))}]}}")
    listed = parse_ranges(Text("key", ",".join(["@big"] * 2048)), configuration.ranges, wildcard=False)
    assert len(listed.items) == 256


def test_a_pod_without_exclusions_shares_the_clusters() -> None:
    """A mesh-wide list is shared, not copied per pod."""
    configuration = read_configuration("defaults: {excludeOutboundIPRanges: 10.0.0.0/8}")
    policy = resolve({"nodeagent.io/excludeOutboundPorts": "25"}, configuration).policy
    assert policy.exclude_ranges is configuration.policy.exclude_ranges


REFUSED = {
    "a namespace's mode that is none": (
        "namespaces:\n  shop:\n    mode: enforced",
        "c.yaml:3: namespaces.shop.mode: 'enforced' is not allowed: use enforce, observe or disabled",
    ),
    "a namespace's mode without a value": (
        "namespaces:\n  shop: {mode: }",
        "c.yaml:2: namespaces.shop.mode: is empty: use enforce, observe or disabled, or leave it out",
    ),
    "a namespace's setting that is misspelt": (
        "namespaces:\n  shop: {optin: true}",
        "c.yaml:2: namespaces.shop.optin: no such setting: did you mean optIn?",
    ),
    "a namespace's switch that is a word": (
        "namespaces:\n  shop: {optIn: 'yes'}",
        "c.yaml:2: namespaces.shop.optIn: 'yes' is not allowed: use true or false, without quotes",
    ),
    "a namespace that cannot be": (
        "namespaces:\n  Shop: {}",
        "c.yaml:2: namespaces.Shop: no namespace has such a name",
    ),
    "a selector without values": (
        "optIn:\n  labels:\n    mesh: []",
        "c.yaml:3: optIn.labels.mesh: an empty list: name values, or '*' for any",
    ),
    "a selector whose value YAML takes for a boolean": (
        "optIn:\n  labels:\n    sidecar.istio.io/inject: [true]",
        "c.yaml:3: optIn.labels.sidecar.istio.io/inject[0]: true is not allowed: use a value in quotes, or '*' for any",
    ),
    "a selector of a key that cannot be": (
        "optIn:\n  annotations: {'mesh in': ['on']}",
        "c.yaml:2: optIn.annotations.mesh in: no such key can be: use NAME or PREFIX/NAME",
    ),
    "a container that cannot be": (
        "proxy:\n  containers: [istio_proxy]",
        "c.yaml:2: proxy.containers[0]: 'istio_proxy' is no container's name: at most 63",
    ),
    "a range of Services that is none": (
        "kubernetes: {serviceRanges: [10.96.0.0/12, services]}",
        "c.yaml:1: kubernetes.serviceRanges[1]: 'services' ",
    ),
    "a jitter that nobody waits for": (
        "kubernetes: {startJitterSeconds: 3600}",
        "c.yaml:1: kubernetes.startJitterSeconds: 3600 is not allowed: use a whole number from 0 to 600",
    ),
    "a socket that is no path": (
        "runtime: {nri: nri.sock}",
        "c.yaml:1: runtime.nri: use a path that begins with /, or off",
    ),
    "a port too low": (
        "proxy:\n  port: 0",
        "c.yaml:2: proxy.port: 0 is not allowed: use a whole number from 1 to 65535",
    ),
    "a port too high": (
        "proxy:\n  dnsPort: 65536",
        "c.yaml:2: proxy.dnsPort: 65536 is not allowed: use a whole number from 1 to 65535",
    ),
    "a port that is text": (
        "proxy:\n\n  port: '15001'",
        "c.yaml:3: proxy.port: '15001' is not allowed: use a whole number from 1 to 65535, without quotes",
    ),
    "an octal port": (
        "proxy: {port: 017}",
        "c.yaml:1: proxy.port: a number in an unusual spelling is not allowed: use a whole number from 1 to 65535",
    ),
    "a sexagesimal port": (
        "proxy: {port: 4:10}",
        "c.yaml:1: proxy.port: a number in an unusual spelling is not allowed: use a whole number from 1 to 65535",
    ),
    "a uid that is none": (
        "proxy:\n  uids:\n  - 1337\n  - 4294967295",
        "c.yaml:4: proxy.uids[1]: 4294967295 is not allowed: use a whole number from 0 to 4294967294",
    ),
    "a uid below the lowest": (
        "proxy:\n  uids: [-1]",
        "c.yaml:2: proxy.uids[0]: -1 is not allowed: use a whole number from 0 to 4294967294",
    ),
    "a uid outside of a list": (
        "proxy:\n  uids: 1337",
        "c.yaml:2: proxy.uids: 1337 is not allowed: use a list, each entry a whole number from 0 to 4294967294",
    ),
    "a section without settings": (
        "mode: observe\nproxy:\n",
        "use a mapping of port, dnsPort, uids, gids, ipv6, containers, initContainers, or leave it out",
    ),
    "a section that is a list": (
        "guard:\n  widestExclude: [8, 16]",
        "c.yaml:2: guard.widestExclude: a list is not allowed: use a mapping of ipv4, ipv6",
    ),
    "a section that is a date": (
        "proxy: 2024-01-01",
        "c.yaml:1: proxy: a timestamp is not allowed: use a mapping of port",
    ),
    "a setting without a value": (
        "proxy:\n  port:\n  ipv6: bypass",
        "c.yaml:2: proxy.port: is empty: use a whole number from 1 to 65535, or leave it out",
    ),
    "a switch that is text": (
        "defaults:\n  dnsCapture: 'true'",
        "c.yaml:2: defaults.dnsCapture: 'true' is not allowed: use true or false, without quotes",
    ),
    "a list where the annotations' text should be": (
        "defaults:\n  excludeOutboundIPRanges:\n  - 10.0.0.0/8",
        "c.yaml:2: defaults.excludeOutboundIPRanges: a list is not allowed: use text in quotes: IP ranges, separated",
    ),
    "a default without a value": (
        "defaults: {excludeInterfaces: }",
        "defaults.excludeInterfaces: is empty: use text in quotes: names of devices, separated by commas, or leave it",
    ),
    "a listener that is a number": ("http: {ui: 9641}", "c.yaml:1: http.ui: 9641 is not allowed: use ADDRESS:PORT"),
    "dialects that are text": (
        "dialects: istio",
        "c.yaml:1: dialects: 'istio' is not allowed: use a list, each entry nodeagent or istio",
    ),
    "a dialect that is a number": ("dialects:\n- 1", "c.yaml:2: dialects[0]: 1 is not allowed: use nodeagent or istio"),
    "named ranges without a name": (
        "ranges: [10.0.0.0/8]",
        "c.yaml:1: ranges: a list is not allowed: use a mapping of names, each a list, each entry a CIDR (10.0.0.0/8, ",
    ),
    "a named range outside of a list": (
        "ranges:\n  db: [10.0.0.0/8]\n  web.eu: 10.1.0.0/16",
        "c.yaml:3: ranges.web.eu: '10.1.0.0/16' is not allowed: use a list, each entry a CIDR",
    ),
    "a named range without a value": (
        "ranges:\n  db:\n",
        "c.yaml:2: ranges.db: is empty: use a list, each entry a CIDR",
    ),
    "a number in a named range": (
        "ranges:\n  db:\n  - 10.0.0.0/8\n  - 10",
        "c.yaml:4: ranges.db[1]: 10 is not allowed: use a CIDR (10.0.0.0/8, 2001:db8::/32) or an address",
    ),
    "a fraction in a named range": (
        "ranges:\n  a: []\n  db: [10.5]",
        "c.yaml:3: ranges.db[0]: a fraction is not allowed",
    ),
    "no owner at all": ("proxy: {uids: [], gids: []}", "c.yaml:1: proxy: uids and gids are both empty"),
    "an unknown section": ("mode: observe\nprxy: {}", "c.yaml:2: prxy: no such setting: did you mean proxy?"),
    "an unknown key": ("proxy:\n  dns_port: 1", "c.yaml:2: proxy.dns_port: no such setting: did you mean dnsPort?"),
    "an unknown key of a deep section": (
        "guard: {widestExclude: {v4: 1}}",
        "c.yaml:1: guard.widestExclude.v4: no such setting: ",
    ),
    "a mode that is none": ("mode: on", "c.yaml:1: mode: true is not allowed: use enforce, observe or disabled"),
    "a mode that is another": (
        "mode: Enforce",
        "c.yaml:1: mode: 'Enforce' is not allowed: use enforce, observe or disabled",
    ),
    "an IPv6 mode": ("proxy: {ipv6: drop}", "proxy.ipv6: 'drop' is not allowed: use intercept or bypass"),
    "a backend": ("backend: iptables", "backend: 'iptables' is not allowed: use auto, nft or legacy"),
    "a dialect": ("dialects:\n- istio\n- osm", "c.yaml:3: dialects[1]: no such dialect: use nodeagent or istio"),
    "a guard too long": (
        "guard: {widestExclude: {ipv4: 33}}",
        "guard.widestExclude.ipv4: 33 is not allowed: use a whole number from 0 to 32",
    ),
    "a listener without a port": ("http: {ui: 127.0.0.1}", "c.yaml:1: http.ui: use ADDRESS:PORT"),
    "a listener by name": ("http: {metrics: 'localhost:9640'}", "c.yaml:1: http.metrics: use ADDRESS:PORT"),
    "an IPv6 listener without brackets": ("http: {metrics: '::1:9640'}", "c.yaml:1: http.metrics: use ADDRESS:PORT"),
    "a limit of nothing": (
        "ledger: {seriesLimit: 0}",
        "c.yaml:1: ledger.seriesLimit: 0 is not allowed: use a whole number from 1 to 1000000",
    ),
    "the wildcard excluded": (
        "defaults:\n  dnsCapture: true\n  excludeOutboundIPRanges: '*'",
        "c.yaml:3: defaults.excludeOutboundIPRanges: entry 1, '*', is not a range",
    ),
    "a bad default range": (
        "defaults:\n  excludeOutboundIPRanges: >-\n    10.0.0.0/8,\n    10.0.0.0/33",
        "c.yaml:2: defaults.excludeOutboundIPRanges: entry 2, '10.0.0.0/33', has a prefix longer than 32",
    ),
    "a bad default port": (
        "defaults: {excludeOutboundPorts: '80,x'}",
        "c.yaml:1: defaults.excludeOutboundPorts: entry 2, 'x'",
    ),
    "a default that is a number": (
        "defaults: {excludeOutboundPorts: 80}",
        "defaults.excludeOutboundPorts: 80 is not allowed: use text in quotes: ports or ranges of them, separated by",
    ),
    "a name nobody gave": (
        "defaults: {excludeOutboundIPRanges: '@db'}",
        "'@db', is not a named range of the cluster configuration",
    ),
    "a bad named range": (
        "ranges:\n  db:\n  - 10.0.0.0/8\n  - db.example",
        "c.yaml:4: ranges.db[1]: 'db.example' is not an IP range",
    ),
    "a name in a named range": (
        "ranges: {a: [10.0.0.0/8], b: ['@a']}",
        "c.yaml:1: ranges.b[0]: '@a' is not an IP range",
    ),
    "an empty named range": ("ranges: {db: []}", "c.yaml:1: ranges.db: an empty list"),
    "a name in capitals": ("ranges:\n  DB: [10.0.0.0/8]", "c.yaml:2: ranges.DB: a name is at most 63"),
    "a name that ends in a dash": ("ranges: {db-: [10.0.0.0/8]}", "ranges.db-: a name is at most 63"),
    "a name too long": (f"ranges: {{{'a' * 64}: [10.0.0.0/8]}}", "a name is at most 63"),
    "a key twice": ("mode: enforce\nbackend: nft\nmode: observe", "c.yaml:3: the key 'mode' is here twice"),
    "a key twice, deeper": ("proxy:\n  port: 1\n  port: 1", "c.yaml:3: the key 'port' is here twice"),
    "a merge key": ("x: &x {port: 1}\nproxy:\n  <<: *x", "c.yaml:3: merge keys"),
    "a list": ("- mode: enforce", "c.yaml:1: a list, where a mapping"),
    "two documents": ("mode: enforce\n---\nmode: observe", "c.yaml:3: a second document"),
    "a timestamp": ("mode: 2024-13-45", "c.yaml:1: mode: a timestamp is not allowed: use enforce, observe or disabled"),
    "a Python object": (
        "mode: !!python/object/apply:os.system [id]",
        "c.yaml:1: mode: a list is not allowed: use enforce, observe or disabled",
    ),
    "a tag": ("mode: !!binary aGk=", "c.yaml:1: mode: a binary is not allowed: use enforce, observe or disabled"),
    "broken YAML": ("mode: [", "c.yaml:2: not valid YAML"),
    "a tab": ("proxy:\n\tport: 1", "c.yaml:2: not valid YAML"),
    "a null byte": ("mode: \0", "c.yaml: not valid YAML"),
    "half a surrogate pair": ("mode: \ud800", "c.yaml:1: not UTF-8"),
    "deep nesting": ("[" * 100_000, "c.yaml:1: nested more than 64 levels"),
    "deep nesting by alias": (
        "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(80)),
        "nested more than 64 levels",
    ),
    "aliases that multiply": (
        "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9)),
        "c.yaml:7: more than 250000 values",
    ),
    "a very long number": (
        "proxy: {port: " + "1" * 100_000 + "}",
        "proxy.port: a number in an unusual spelling is not allowed: use a whole number from 1 to 65535",
    ),
    "a long sexagesimal number": (
        "proxy: {port: 1" + ":1" * 100_000 + "}",
        "proxy.port: a number in an unusual spelling",
    ),
    "too large": ("#" * (1024 * 1024 + 1), "c.yaml: larger than 1048576 bytes"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_said_in_one_line_with_its_place(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_configuration(text, "c.yaml")
    assert message in str(caught.value)
    assert not re.search(r"Expected|object|array|\bstr\b|\bint\b|\.\.\.\]|\$", str(caught.value))  # programmers' words
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


def test_bytes_are_read_as_utf8() -> None:
    assert read_configuration(b"mode: observe").policy.mode is Mode.OBSERVE
    with pytest.raises(InputError, match=r"c.yaml:2: not UTF-8"):
        read_configuration(b"mode: observe\n# \xff", "c.yaml")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        DEFAULT.settings.mode = Mode.OBSERVE  # type: ignore[misc]  # that is the test
    assert DEFAULT.settings == Settings()
