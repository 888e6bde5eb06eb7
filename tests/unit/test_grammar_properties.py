"""Any text at all is a policy or a clear error; what is accepted means what the standard library says it means."""

import string
import sys
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.errors import InputError
from nodeagent.files.manifest import read_pods
from nodeagent.model import Family, Network, Ranges, Sourced
from nodeagent.policy import Rejection, describe, read_configuration, resolve
from nodeagent.policy.dialects import DIALECTS, PREFIXES
from nodeagent.policy.grammar import ANNOTATION
from nodeagent.policy.ranges import RangeError, address_union, covers, parse_range, sort_ranges

KEYS = [key for dialect in DIALECTS.values() for key in (*dialect.fields, *dialect.not_ours)]
RANGE_KEYS = ["nodeagent.io/includeOutboundIPRanges", "nodeagent.io/excludeOutboundIPRanges"]
CONFIGURATION = read_configuration("""
guard: {widestExclude: {ipv4: 8, ipv6: 16}}
ranges: {payments-db: [10.20.0.0/16]}
""")

networks: st.SearchStrategy[Network] = st.one_of(
    st.builds(
        lambda address, length: IPv4Network((address, length), strict=False),
        st.integers(0, 2**32 - 1),
        st.integers(8, 32),
    ),
    st.builds(
        lambda address, length: IPv6Network((address, length), strict=False),
        st.integers(2**96, 2**128 - 1),
        st.integers(16, 128),
    ),
)
nearly_ranges = st.lists(
    st.one_of(
        networks.map(str),
        st.text(alphabet="0123456789abcdefABCDEFx.:/%*@-+ ,", max_size=30),
        st.sampled_from(
            [
                "@payments-db",
                "@",
                "*",
                "::ffff:1.2.3.4",
                "10.0.0.0/08",
                "1.2.3.4/255.0.0.0",
                "fe80::1%1/64",
                "\uff11.0.0.0",
            ]
        ),
    )
).map(",".join)
nearly_ports = st.text(alphabet=string.digits + "-:, ", max_size=100)
hostile = st.one_of(
    st.text(),
    nearly_ranges,
    nearly_ports,
    st.builds(
        lambda piece, times: piece * times, st.text(min_size=1, max_size=8), st.sampled_from([100, 4096, 40_000])
    ),
)


prefixes = st.sampled_from((*PREFIXES, *map(str.upper, PREFIXES)))
keys = st.one_of(st.sampled_from(KEYS), st.builds(str.__add__, prefixes, st.text()))


@given(st.dictionaries(keys, hostile, max_size=6))
def test_any_annotations_are_a_policy_or_clear_errors(annotations: dict[str, str]) -> None:
    resolution = resolve(annotations, CONFIGURATION)
    for rejection in resolution.rejected:
        check_clear(rejection)
    if resolution.rejected:
        assert resolution.policy == CONFIGURATION.policy
    assert all(warning.isascii() and warning.isprintable() for warning in resolution.warnings)
    describe(resolution)


def check_clear(rejection: Rejection) -> None:
    assert rejection.key in KEYS
    assert rejection.message.startswith(f"{rejection.key}: ")
    assert rejection.message.isascii()
    assert rejection.message.isprintable()
    assert len(rejection.message) < 600
    assert (rejection.position is None) == rejection.message.endswith("characters: at most 32768 are allowed")


@given(nearly_ranges)
def test_what_is_accepted_is_the_standard_librarys_network(value: str) -> None:
    resolution = resolve({RANGE_KEYS[0]: value})
    if not resolution.rejected and not resolution.policy.include_ranges.every:
        entries = [entry.strip(" ") for entry in value.split(",")]
        expected = {ip_network(entry, strict=False) for entry in entries if entry}
        assert set(resolution.policy.include_ranges) == expected


@given(st.lists(networks, max_size=40), st.sampled_from(RANGE_KEYS))
def test_canonical_text_is_a_fixpoint_whatever_the_order(items: list[Network], key: str) -> None:
    field = "include_ranges" if key.startswith("nodeagent.io/include") else "exclude_ranges"
    once = resolve({key: ",".join(map(str, items))})
    canonical: Any = describe(once)[field]
    assert resolve({key: ",".join(canonical)}).policy == once.policy
    assert canonical == [str(n) for n in sorted(set(items), key=lambda n: (n.version, n.network_address, n.prefixlen))]


@given(st.lists(st.integers(0, 65535), min_size=2, max_size=40), st.sampled_from("-:"))
def test_ports_are_a_fixpoint_too(numbers: list[int], dash: str) -> None:
    pairs = zip(sorted(numbers)[::2], sorted(numbers)[1::2], strict=False)
    key = "nodeagent.io/includeOutboundPorts"
    once = describe(resolve({key: ", ".join(f"{first}{dash}{last}" for first, last in pairs)}))
    ports: Any = once["include_ports"]
    assert describe(resolve({key: ",".join(ports)})) == once


INJECTED = sorted(set(map(chr, range(128))) - set(string.ascii_letters + string.digits + "., :/-*@")) + list(
    "\x85\xa0\u0660\u200b\u2028\u2029\u202e\u3000\ufeff\uff10\uff0c\ud800\U0001d7d8"
)


@given(networks, st.sampled_from(INJECTED), st.data())
def test_an_injected_character_always_refuses(network: Network, character: str, data: st.DataObject) -> None:
    text = str(network)
    at = data.draw(st.integers(0, len(text)))
    for key in RANGE_KEYS:
        resolution = resolve({key: text[:at] + character + text[at:]})
        assert [rejection.reason for rejection in resolution.rejected] == ["syntax"]


@given(st.integers(0, 2**32 - 1), st.integers(96, 128))
def test_ipv4_mapped_is_refused_in_every_spelling(low: int, length: int) -> None:
    address = IPv6Address(0xFFFF << 32 | low)
    dotted = f"::ffff:{low >> 24}.{low >> 16 & 255}.{low >> 8 & 255}.{low & 255}"
    for text in (address.compressed, address.exploded, address.exploded.upper(), dotted):
        with pytest.raises(RangeError):
            parse_range(f"{text}/{length}")


@given(st.lists(networks, max_size=12), st.lists(networks, min_size=1, max_size=4))
def test_covers_agrees_with_looking_at_each_range(outer: list[Network], inner: list[Network]) -> None:
    """One range is covered by a union exactly if nothing of it is left once every part of the union is cut out."""
    for family in Family:
        left = [network for network in inner if network.version == family]
        for block in outer:
            left = [rest for network in left for rest in cut(network, block)]
        assert covers(address_union(ranges(outer), family), address_union(ranges(inner), family)) == (not left)


def cut(network: Network, block: Network) -> list[Network]:
    if network.version != block.version or not network.overlaps(block):
        return [network]
    if network.prefixlen >= block.prefixlen:
        return []
    return list(network.address_exclude(block))  # type: ignore[arg-type]  # versions are equal


def ranges(items: list[Network]) -> Ranges:
    return Ranges(sort_ranges(Sourced(network, "test") for network in items))


@given(st.one_of(st.text(), st.binary(), st.text(alphabet="{}[]:,-&*!?|>'\"# \nabc1")))
def test_any_text_is_a_configuration_or_a_clear_error(text: str | bytes) -> None:
    check_input_error(lambda: read_configuration(text))


@given(st.one_of(st.text(), st.text(alphabet="{}[]:,-&*!?|>'\"# \nabc1")), st.booleans())
def test_any_text_is_pods_or_a_clear_error(text: str, inside: bool) -> None:  # noqa: FBT001  # hypothesis gives it
    manifest = f"kind: Pod\nmetadata: {{name: a, annotations: {{nodeagent.io/proxyPort: {text}}}}}" if inside else text
    check_input_error(lambda: read_pods(manifest, "pod.yaml"))


def check_input_error(action: Callable[[], object]) -> None:
    message = ""
    try:
        action()
    except InputError as error:
        message = str(error)
    assert message.isprintable()
    assert len(message) < 1000


# -- linear time, by counting: lines of ours that run, not seconds

FILLINGS = {
    "commas": ",",
    "blanks": " ",
    "blanks and commas": " ,",
    "one endless entry": "1",
    "dots": ".",
    "colons": ":",
    "slashes": "/",
    "stars": "*",
    "names": "@a,",
    "the name that exists": "@payments-db,",
    "addresses": "10.0.0.1,",
    "ports": "80,",
    "port ranges": "1-2,",
    "interfaces": "net1,",
    "characters that are not ASCII": "\u2028",
}


def lines_run(action: Callable[[], object]) -> int:
    """Return how many lines of the package run in *action*; each line's own work is bounded by C code's one pass."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401  # a trace function returns itself
        nonlocal count
        if "nodeagent" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("key", [key for key in KEYS if key.startswith("nodeagent.io/")])
@pytest.mark.parametrize("filling", FILLINGS.values(), ids=FILLINGS)
def test_twice_the_text_is_at_most_twice_the_work(filling: str, key: str) -> None:
    def work(characters: int) -> int:
        value = (filling * characters)[:characters]
        return lines_run(lambda: resolve({key: value}, CONFIGURATION))

    sizes = [2048, 4096, 8192, 16384]
    costs = [work(size) for size in sizes]
    for smaller, larger in pairwise(costs):
        assert larger <= 2 * smaller + 200


@pytest.mark.parametrize("filling", FILLINGS.values(), ids=FILLINGS)
def test_beyond_the_limit_more_text_is_no_more_work(filling: str) -> None:
    def work(characters: int) -> int:
        value = (filling * characters)[:characters]
        return lines_run(lambda: resolve({RANGE_KEYS[1]: value}, CONFIGURATION))

    assert work(ANNOTATION.characters + 1) == work(64 * ANNOTATION.characters)


@settings(max_examples=20)
@given(st.integers(1, 3000))
def test_the_limit_on_entries_is_exact(count: int) -> None:
    value = ", ,".join(["80"] * count)
    refused = resolve({"nodeagent.io/excludeOutboundPorts": value}).rejected
    assert [rejection.reason for rejection in refused] == ["size"] * (count > ANNOTATION.entries)
