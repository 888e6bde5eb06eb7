"""What each interesting policy becomes in nft's words: the goldens, and what no golden shows."""

from pathlib import Path

import pytest

from nodeagent.compile import compile_policy
from nodeagent.compile.canonical import identify
from nodeagent.compile.foreign import other_proxy
from nodeagent.compile.nft import CHAINS, PLAIN_PORTS, NftSet, lower, text
from nodeagent.model import Bypass, Family, Hook, Match, Policy, PortRange, Protocol, RangeSet, Rule
from tests.cases.policies import POLICIES, ports
from tests.conftest import GOLDENS, Golden


@pytest.mark.parametrize("name", POLICIES)
def test_golden(name: str, golden: Golden) -> None:
    golden(f"nft/{name}.nft", text(lower(compile_policy(POLICIES[name]))))


def test_every_golden_has_a_policy() -> None:
    assert {path.stem for path in Path(GOLDENS / "nft").iterdir()} == set(POLICIES)


def test_rules_are_the_same_whatever_the_generation() -> None:
    ruleset = compile_policy(POLICIES["everything_at_once"])
    assert text(lower(ruleset, "b")) == text(lower(ruleset)).replace("clude4_a", "clude4_b")


def test_the_permanent_rule_does_not_know_its_rule_set() -> None:
    keep = {str(rule) for policy in POLICIES.values() for rule in _rules(policy, Hook.KEEP)}
    assert keep == {'ct state invalid comment "nodeagent:keep"'}


@pytest.mark.parametrize("name", POLICIES)
def test_every_redirecting_rule_carries_the_id(name: str) -> None:
    ruleset = compile_policy(POLICIES[name])
    comments = {rule.comment for rule in lower(ruleset).rules if rule.chain == CHAINS[Hook.REDIRECT].name}
    assert {comment.split(":")[1] for comment in comments} == {ruleset.id}


@pytest.mark.parametrize("name", POLICIES)
def test_comments_fit(name: str) -> None:
    """The kernel takes 256 bytes, nft prints 128."""
    assert all(len(rule.comment) < 128 for rule in lower(compile_policy(POLICIES[name])).rules)


def test_many_ports_are_one_set_for_both_protocols() -> None:
    table = lower(compile_policy(Policy(exclude_ports=ports(*range(1, 2 * PLAIN_PORTS + 3, 2)))))
    assert [(s.name, s.type, len(s.intervals)) for s in table.sets] == [("ports1_a", "inet_service", PLAIN_PORTS + 1)]
    excluding = [str(rule.statements[0]) for rule in table.rules if rule.comment.endswith("excluded_port")]
    assert excluding == ["tcp dport @ports1_a", "udp dport @ports1_a"]


def test_an_interface_that_ends_in_a_star_is_no_wildcard() -> None:
    (rule,) = _lowered(Match(out_interface="eth*"))
    assert rule == 'oifname "eth\\*" return'


def test_networks_that_touch_are_one_interval() -> None:
    networks = tuple(n.value for n in POLICIES["exclude_every_address"].exclude_ranges.items if n.value.version == 4)
    halves = RangeSet("exclude4", Family.V4, tuple(networks[0].subnets()))
    ruleset = identify(((Hook.REDIRECT, (Rule(Match(Family.V4, destination="exclude4"), Bypass(), "x"),)),), (halves,))
    assert lower(ruleset).sets == (NftSet("exclude4_a", "ipv4_addr", ((0, 0xFFFFFFFF),)),)


@pytest.mark.parametrize(
    ("match", "statements"),
    [
        (Match(protocol=Protocol.TCP), "meta l4proto tcp"),
        (Match(protocol=Protocol.OTHER), "meta l4proto != tcp meta l4proto != udp"),
        (Match(Family.V6), "meta nfproto ipv6"),
        (Match(protocol=Protocol.UDP, source_port=53), "udp sport 53"),
        (Match(uid=0, gid=4294967295), "meta skuid 0 meta skgid 4294967295"),
    ],
)
def test_match(match: Match, statements: str) -> None:
    assert _lowered(match) == [f"{statements} return"]


def test_a_rule_on_a_set_needs_a_family() -> None:
    with pytest.raises(ValueError, match="needs a family"):
        _lowered(Match(destination="exclude4"))


def test_ports_keep_their_order_and_their_neighbours() -> None:
    match = Match(protocol=Protocol.TCP, ports=(PortRange(0, 0), PortRange(5, 9)))
    assert _lowered(match) == ["tcp dport 0 return", "tcp dport 5-9 return"]


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("ISTIO_OUTPUT", "Istio"),
        ("istio-proxy-nat", "Istio"),
        ("PROXY_INIT_OUTPUT", "Linkerd"),
        ("KUMA_MESH_OUTBOUND", "Kuma"),
        ("MESH_OUTBOUND", "Kuma"),
        ("CONSUL_PROXY_OUTPUT", "Consul"),
        ("OSM_PROXY_OUTBOUND", "Open Service Mesh"),
        ("APPMESH_EGRESS", "AWS App Mesh"),
        ("NODEAGENT_OUTPUT", None),
        ("OUTPUT", None),
        ("NOT_ISTIO_OUTPUT", None),
    ],
)
def test_other_proxies_are_known_by_name(name: str, mesh: str | None) -> None:
    assert other_proxy(name) == mesh


def _lowered(match: Match) -> list[str]:
    ruleset = identify(((Hook.REDIRECT, (Rule(match, Bypass(), "x"),)),), ())
    return [" ".join(map(str, rule.statements)) for rule in lower(ruleset).rules]


def _rules(policy: Policy, hook: Hook) -> list[object]:
    return [rule for rule in lower(compile_policy(policy)).rules if rule.chain == CHAINS[hook].name]
