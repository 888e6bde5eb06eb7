"""Every case of the annotation corpus: what is accepted means this, what is refused is refused whole."""

import json
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

import pytest

from nodeagent.decide import decide
from nodeagent.errors import InputError
from nodeagent.files.manifest import read_pods
from nodeagent.model import Connection
from nodeagent.policy import Resolution, describe, read_configuration, resolve
from nodeagent.policy.dialects import DIALECTS
from tests.cases import load

CORPUS: dict[str, Any] = load("annotations.yaml")
RANGE_KEYS = {"include": "includeOutboundIPRanges", "exclude": "excludeOutboundIPRanges"}
FIELDS = {
    "includeOutboundIPRanges": "include_ranges",
    "excludeOutboundIPRanges": "exclude_ranges",
    "includeOutboundPorts": "include_ports",
    "excludeOutboundPorts": "exclude_ports",
    "excludeInterfaces": "exclude_interfaces",
    "proxyPort": "proxy_port",
    "proxyUID": "proxy_uids",
    "proxyGID": "proxy_gids",
    "dnsCapture": "dns_capture",
    "intercept": "mode",
}
CONFIGURATION = read_configuration(f"""
guard: {{widestExclude: {{ipv4: {CORPUS["guard"]["ipv4"]}, ipv6: {CORPUS["guard"]["ipv6"]}}}}}
ranges: {CORPUS["named"]}
""")


def value_of(case: Mapping[str, Any]) -> str:
    if "generate" not in case:
        return str(case["value"])
    recipe = case["generate"]
    if "repeat" in recipe:
        return str(recipe["repeat"] * recipe["times"])
    # Templates hold expressions such as {i//256}; the corpus is ours, and these are the only two it may use.
    pieces = (
        recipe["template"].replace("{i//256}", str(i // 256)).replace("{i%256}", str(i % 256)).replace("{i}", str(i))
        for i in range(recipe["count"])
    )
    return str(recipe["join"].join(pieces))


def readable(case: Mapping[str, Any]) -> str:
    return f"{case['id']} {case['why']}"


def check_warnings(resolution: Resolution, case: Mapping[str, Any]) -> None:
    if "warns" in case:
        assert any(case["warns"] in warning for warning in resolution.warnings)
    else:
        hints = [warning for warning in resolution.warnings if "host bits" not in warning]
        assert not hints


@pytest.mark.fault(32)
@pytest.mark.fault(33)
@pytest.mark.parametrize("case", [*CORPUS["cases"], *CORPUS["fields"]], ids=readable)
def test_a_value(case: Mapping[str, Any]) -> None:
    name = RANGE_KEYS.get(case["key"], case["key"])
    key, value = f"nodeagent.io/{name}", value_of(case)
    resolution = resolve({key: value}, CONFIGURATION)
    if case["expect"].startswith("reject"):
        check_refusal(resolution, key, case)
        return
    assert not resolution.rejected
    found = describe(resolution)[FIELDS[name]]
    if "canonical" in case:
        assert found == case["canonical"]
    else:
        assert found == sorted(value.split(","), key=lambda text: ip_address(text.split("/")[0]))
    check_warnings(resolution, case)


def check_refusal(resolution: Resolution, key: str, case: Mapping[str, Any]) -> None:
    assert resolution.policy == CONFIGURATION.policy
    (rejection,) = resolution.rejected
    assert (rejection.key, f"reject_{rejection.reason}") == (key, case["expect"])
    assert rejection.message.startswith(key)
    for text in (rejection.message, rejection.entry):
        assert text.isascii()
        assert text.isprintable() or not text
    assert len(rejection.entry) <= 128 + len("...")
    if "position" in case:
        assert rejection.position == case["position"]


def combination(number: str) -> Mapping[str, Any]:
    (case,) = (case for case in CORPUS["combinations"] if case["id"] == number)
    return dict(case)


POLICY_COMBINATIONS = [
    case for case in CORPUS["combinations"] if case["expect"] in {"accept", "reject_syntax", "unknown_key"}
]


@pytest.mark.parametrize("case", POLICY_COMBINATIONS, ids=readable)
def test_annotations_together(case: Mapping[str, Any]) -> None:
    resolution = resolve(case["pod"], CONFIGURATION)
    assert len(resolution.rejected) == (case.get("keys", 1) if case["expect"] == "reject_syntax" else 0)
    assert bool(resolution.unknown_keys) == (case["expect"] == "unknown_key")
    if resolution.rejected or resolution.unknown_keys:
        assert resolution.policy == CONFIGURATION.policy
    else:
        check_warnings(resolution, case)
    for destination, reason in case.get("decides", {}).items():
        assert decide(resolution.policy, Connection(ip_address(destination), 443)).reason == reason


def test_b05_a_misspelt_key_is_named_with_what_was_meant() -> None:
    resolution = resolve(combination("B05")["pod"], CONFIGURATION)
    assert resolution.unknown_keys == ("nodeagent.io/Exclude-Outbound",)
    assert "did you mean nodeagent.io/excludeOutbound" in resolution.warnings[0]


def test_b06_a_number_for_a_string_is_refused_as_the_api_server_does() -> None:
    manifest = f"kind: Pod\nmetadata:\n  name: web\n  annotations: {combination('B06')['pod']}"
    with pytest.raises(InputError, match=r"pod.yaml:4: metadata.annotations.nodeagent.io/proxyPort: .*quote it"):
        read_pods(manifest, "pod.yaml")


def test_b07_only_annotations_that_a_dialect_may_know_are_kept() -> None:
    junk = "x" * (combination("B07")["annotation_bytes"] - 100)
    text = f"{{kind: Pod, metadata: {{name: web, annotations: {{a/b: {junk}, nodeagent.io/proxyPort: '4140'}}}}}}"
    (pod,) = read_pods(text, "pod.yaml")
    assert pod.annotations == {"nodeagent.io/proxyPort": "4140"}


def test_b08_each_edit_is_judged_by_itself_so_the_last_one_wins() -> None:
    (key,) = combination("B08")["pod"]
    policies = [resolve({key: f"198.51.{i // 256}.{i % 256}"}).policy for i in range(combination("B08")["edits"])]
    assert [str(network) for network in policies[-1].exclude_ranges] == ["198.51.3.231/32"]


def test_b09_a_pod_whose_annotation_went_is_as_if_it_had_never_had_one() -> None:
    case = combination("B09")
    assert resolve(case["before"], CONFIGURATION).policy != CONFIGURATION.policy
    assert resolve(case["pod"], CONFIGURATION).policy == CONFIGURATION.policy


# -- merging with the cluster's configuration

CLUSTER = read_configuration("""
mode: observe
defaults:
  includeOutboundIPRanges: 10.0.0.0/8
  excludeOutboundIPRanges: 10.1.0.0/16
  includeOutboundPorts: '443'
  excludeOutboundPorts: '3306'
  excludeInterfaces: net1
""")


def described(annotations: Mapping[str, str]) -> dict[str, Any]:
    return describe(resolve({f"nodeagent.io/{name}": value for name, value in annotations.items()}, CLUSTER))


def test_exclusions_add_to_the_clusters() -> None:
    found = described({"excludeOutboundIPRanges": "10.0.5.0/24", "excludeOutboundPorts": "5432,3306"})
    assert found["exclude_ranges"] == ["10.0.5.0/24", "10.1.0.0/16"]
    assert found["exclude_ports"] == ["3306", "5432"]
    assert found["sources"]["exclude_ranges"] == (
        "configuration defaults.excludeOutboundIPRanges, annotation nodeagent.io/excludeOutboundIPRanges"
    )


def test_an_empty_exclusion_takes_nothing_from_the_clusters() -> None:
    found = described({"excludeOutboundIPRanges": "", "excludeOutboundPorts": ""})
    assert found["exclude_ranges"] == ["10.1.0.0/16"]
    assert found["exclude_ports"] == ["3306"]
    assert found["sources"]["exclude_ports"] == "configuration defaults.excludeOutboundPorts"


def test_everything_else_replaces_the_clusters() -> None:
    found = described(
        {
            "includeOutboundIPRanges": "*",
            "includeOutboundPorts": "",
            "excludeInterfaces": "net2",
            "intercept": "enabled",
        }
    )
    assert found["include_ranges"] == ["*"]
    assert found["include_ports"] == []
    assert found["exclude_interfaces"] == ["net1", "net2"]
    assert found["mode"] == "enforce"
    assert found["sources"]["mode"] == "annotation nodeagent.io/intercept"


def test_an_exclusion_the_cluster_has_already_stays_the_clusters() -> None:
    policy = resolve({"nodeagent.io/excludeOutboundIPRanges": "10.1.0.0/16"}, CLUSTER).policy
    assert [item.source for item in policy.exclude_ranges.items] == ["configuration defaults.excludeOutboundIPRanges"]


def test_the_guard_judges_the_pod_and_not_the_cluster() -> None:
    wide = read_configuration("guard: {widestExclude: {ipv4: 8}}\ndefaults: {excludeOutboundIPRanges: 0.0.0.0/1}")
    assert not resolve({"nodeagent.io/excludeOutboundIPRanges": "128.0.0.0/8"}, wide).rejected
    (rejection,) = resolve({"nodeagent.io/excludeOutboundIPRanges": "192.0.2.1, 128.0.0.0/1"}, wide).rejected
    assert (rejection.reason, rejection.position, rejection.entry) == ("policy", 2, "128.0.0.0/1")


def test_every_field_of_a_policy_says_where_it_came_from() -> None:
    found = described({})
    assert found["sources"].keys() == found.keys() - {"sources", "warnings", "rejected", "unknown_keys"}
    assert found["sources"]["proxy_port"] == "default"
    assert found["sources"]["mode"] == "configuration mode"


def test_a_dialect_that_is_not_enabled_is_not_read() -> None:
    ours_only = read_configuration("dialects: [nodeagent]")
    assert resolve({"traffic.sidecar.istio.io/excludeOutboundPorts": "1"}, ours_only).policy == ours_only.policy


ISTIO = "traffic.sidecar.istio.io/"
SILENT_NO_LONGER = {
    "a letter is missing from another mesh's key": (
        "[nodeagent, istio]",
        {f"{ISTIO}excludeOutboundIPRange": "10.0.0.0/8"},
        f"Range is not a known annotation and sets nothing: did you mean {ISTIO}excludeOutboundIPRanges?",
    ),
    "another mesh's key has another case": (
        "[nodeagent, istio]",
        {f"{ISTIO}excludeoutboundports": "80"},
        f"did you mean {ISTIO}excludeOutboundPorts?",
    ),
    "another mesh's prefix has another case": (
        "[nodeagent, istio]",
        {"traffic.Sidecar.istio.io/excludeInterfaces": "net1"},
        f"did you mean {ISTIO}excludeInterfaces?",
    ),
    "another mesh's key is misspelt, and its dialect is off": (
        "[nodeagent]",
        {f"{ISTIO}excludeOutboundPort": "80"},
        "sets nothing: did you mean nodeagent.io/excludeOutboundPorts?",
    ),
    "our prefix has another case": (
        "[nodeagent, istio]",
        {"Nodeagent.io/excludeOutboundPorts": "80"},
        "is not a known annotation and sets nothing: did you mean nodeagent.io/excludeOutboundPorts?",
    ),
    "our key has another case": (
        "[nodeagent, istio]",
        {"nodeagent.io/dnscapture": "true"},
        "did you mean nodeagent.io/dnsCapture?",
    ),
    "our key counts for nothing, because our dialect is off": (
        "[istio]",
        {"nodeagent.io/excludeOutboundPorts": "80"},
        f"the configuration's dialects leave nodeagent out: {ISTIO}excludeOutboundPorts would count",
    ),
    "our key has no like in the dialects that are on": (
        "[istio]",
        {"nodeagent.io/dnsCapture": "true"},
        "nodeagent.io/dnsCapture sets nothing, because the configuration's dialects leave nodeagent out",
    ),
    "another mesh's key counts for nothing, because its dialect is off": (
        "[nodeagent]",
        {f"{ISTIO}excludeOutboundPorts": "80"},
        "the configuration's dialects leave istio out: nodeagent.io/excludeOutboundPorts would count",
    ),
    "another mesh's key differs from ours, and its dialect is off": (
        "[nodeagent]",
        {f"{ISTIO}excludeOutboundPorts": "80", "nodeagent.io/excludeOutboundPorts": "81"},
        "the configuration's dialects leave istio out: nodeagent.io/excludeOutboundPorts would count",
    ),
}


@pytest.mark.parametrize(("dialects", "pod", "says"), SILENT_NO_LONGER.values(), ids=SILENT_NO_LONGER)
def test_a_key_that_sets_nothing_is_said_with_the_one_that_was_meant(
    dialects: str, pod: Mapping[str, str], says: str
) -> None:
    manifest = f"{{kind: Pod, metadata: {{name: web, annotations: {json.dumps(pod)}}}}}"
    (read,) = read_pods(manifest, "pod.yaml")
    found = resolve(read.annotations, read_configuration(f"dialects: {dialects}"))
    (warning,), key = found.warnings, next(iter(pod))
    assert warning.startswith(key)
    assert warning.endswith(says)
    refused_by_apply = key.lower().startswith("nodeagent.io/") and "not a known" in warning
    assert found.unknown_keys == ((key,) if refused_by_apply else ())


NOT_FOR_US = {
    "every other key that Istio knows": (
        "[nodeagent, istio]",
        dict.fromkeys((f"{ISTIO}{name}" for name in ("includeInboundPorts", "excludeInboundPorts")), "80")
        | {f"{ISTIO}kubevirtInterfaces": "net1"},
    ),
    "another key of Istio's, misspelt": ("[nodeagent, istio]", {f"{ISTIO}excludeInboundPort": "80"}),
    "another key of Istio's, its dialect off": ("[nodeagent]", {f"{ISTIO}includeInboundPorts": "80"}),
    "a key that a later Istio may know": ("[nodeagent, istio]", {f"{ISTIO}waypointPorts": "80"}),
    "what Istio's key says, its dialect off, ours says too": (
        "[nodeagent]",
        {f"{ISTIO}excludeOutboundPorts": "80", "nodeagent.io/excludeOutboundPorts": "80"},
    ),
    "keys that look like ours under a stranger's prefix": (
        "[nodeagent, istio]",
        {"example.com/excludeOutboundPort": "80"},
    ),
}


@pytest.mark.parametrize(("dialects", "pod"), NOT_FOR_US.values(), ids=NOT_FOR_US)
def test_a_key_that_is_not_for_us_is_none_of_our_business(dialects: str, pod: Mapping[str, str]) -> None:
    found = resolve(pod, read_configuration(f"dialects: {dialects}"))
    assert (found.warnings, found.unknown_keys, found.rejected) == ((), (), ())


def test_a_flood_of_another_meshs_keys_costs_little_and_hides_nothing_of_ours() -> None:
    pod = {f"{ISTIO}excludeOutboundPort{i}": "80" for i in range(5000)} | {"nodeagent.io/dnsCaptures": "true"}
    warnings = resolve(pod).warnings
    assert len(warnings) == 17
    assert warnings[0].startswith("nodeagent.io/dnsCaptures")


@pytest.mark.parametrize("key", DIALECTS["istio"].fields)
def test_a_key_of_another_mesh_means_what_ours_of_the_same_name_means(key: str) -> None:
    value = "net1" if key.endswith("Interfaces") else "10"[: 2 * key.endswith("Ports")] or "10.0.0.0/8"
    theirs, ours = (resolve({name: value}) for name in (key, f"nodeagent.io/{key.split('/')[1]}"))
    assert {**describe(theirs), "sources": None, "warnings": None} == {
        **describe(ours),
        "sources": None,
        "warnings": None,
    }


def test_a_key_that_lost_to_the_canonical_one_cannot_be_at_fault() -> None:
    """Somebody writes the canonical key *because* the other mesh's value is not ours to read."""
    resolution = resolve(
        {"nodeagent.io/excludeOutboundPorts": "1", "traffic.sidecar.istio.io/excludeOutboundPorts": "*"}
    )
    assert not resolution.rejected
    assert "is ignored" in resolution.warnings[0]


def test_a_flood_of_unknown_keys_is_counted_and_not_listed() -> None:
    resolution = resolve({f"nodeagent.io/excludeOut{i}": "" for i in range(5000)})
    assert len(resolution.unknown_keys) == 5000
    assert len(resolution.warnings) == 17
    assert resolution.warnings[-1].startswith("4984 more")


@pytest.mark.parametrize("key", ["proxyUID", "proxyGID", "excludeInterfaces"])
def test_each_owner_and_interface_is_a_rule_so_there_are_few(key: str) -> None:
    names = [f"{1000 + number}" for number in range(65)]
    assert not resolve({f"nodeagent.io/{key}": ",".join(names[:64])}).rejected
    (rejection,) = resolve({f"nodeagent.io/{key}": ",".join(names)}).rejected
    assert (rejection.reason.value, rejection.position) == ("size", 65)
