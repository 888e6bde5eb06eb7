"""What the legacy backend writes, as iptables-legacy-save prints it; the goldens are the review."""

from ipaddress import ip_network

import pytest

from nodeagent.compile import compile_policy
from nodeagent.compile.canonical import identify
from nodeagent.compile.legacy import Extension, LegacyRule, lower, pin_path, render
from nodeagent.errors import InputError
from nodeagent.model import Bypass, Family, Hook, Match, Policy, PortRange, Protocol, RangeSet, Rule, RuleSet
from tests.cases.policies import POLICIES, interfaces, ranges, scattered
from tests.conftest import GOLDENS, Golden


@pytest.mark.parametrize("family", Family, ids=lambda family: f"v{family}")
@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_compiles_to_its_golden_text(name: str, family: Family, golden: Golden) -> None:
    golden(f"legacy/{name}.v{family}", render(lower(compile_policy(POLICIES[name]), family)))


def test_no_golden_file_is_left_over() -> None:
    expected = {f"{name}.v{family}" for name in POLICIES for family in Family}
    assert {path.name for path in (GOLDENS / "legacy").iterdir()} == expected


def redirect_chain(*rules: Rule) -> RuleSet:
    return identify(((Hook.REDIRECT, rules),), ())


def own_rules(ruleset: RuleSet, family: Family = Family.V4) -> list[LegacyRule]:
    return [rule for rule in lower(ruleset, family) if rule.chain.startswith("NODEAGENT_")]


def dports(ports: tuple[PortRange, ...]) -> list[Extension]:
    rule = Rule(Match(protocol=Protocol.TCP, ports=ports), Bypass(), "excluded_port")
    return [lowered.matches[0] for lowered in own_rules(redirect_chain(rule))]


def test_fifteen_ports_are_one_rule_and_sixteen_two() -> None:
    ports = tuple(PortRange(n, n) for n in range(1, 32, 2))
    assert [len(match.options[0][1].split(",")) for match in dports(ports[:15])] == [15]
    assert dports(ports)[1] == Extension("tcp", (("dport", "31"),))


def test_a_range_of_ports_takes_two_of_fifteen_places() -> None:
    assert [match.options[0][1] for match in dports(tuple(PortRange(n, n + 1) for n in range(0, 32, 4)))] == [
        "0:1,4:5,8:9,12:13,16:17,20:21,24:25",
        "28:29",
    ]


def test_every_port_is_no_match_at_all() -> None:
    (rule,) = own_rules(
        redirect_chain(Rule(Match(protocol=Protocol.UDP, ports=(PortRange(0, 65535),)), Bypass(), "all"))
    )
    assert str(rule) == '-A NODEAGENT_OUTPUT -p udp -m comment --comment "nodeagent:all" -j RETURN'


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0"])
def test_every_address_is_no_match_at_all(network: str) -> None:
    destination = ip_network(network)
    rules = redirect_chain(Rule(Match(destination=destination), Bypass(), "all"))
    assert own_rules(rules, Family(destination.version))[0].destination is None


@pytest.mark.parametrize(
    ("network", "text"),
    [
        ("::1/128", "::1/128"),
        ("::/96", "::/96"),
        ("::ffff:0:0/96", "::ffff:0.0.0.0/96"),
        ("::ffff:1.2.3.4/128", "::ffff:1.2.3.4/128"),
        ("::1.2.3.4/128", "::1.2.3.4/128"),
        ("64:ff9b::1.2.3.4/128", "64:ff9b::102:304/128"),
        ("0:0:1:2::/128", "0:0:1:2::/128"),
    ],
)
def test_ipv6_addresses_are_written_as_iptables_does(network: str, text: str) -> None:
    rule = Rule(Match(Family.V6, destination=ip_network(network)), Bypass(), "excluded_cidr")
    assert own_rules(redirect_chain(rule), Family.V6)[0].destination == text


@pytest.mark.parametrize("name", ["eth+", "!lo", "+"])
def test_an_interface_that_iptables_reads_as_a_pattern_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="reads it as a pattern"):
        lower(compile_policy(Policy(exclude_interfaces=interfaces(name))), Family.V4)


@pytest.mark.parametrize("why", ["", "it's", "!no", "two words", 'quo"te', "naïve", "line\n"])
def test_a_reason_that_would_be_altered_on_its_way_is_refused(why: str) -> None:
    with pytest.raises(InputError, match="reach the kernel unaltered"):
        lower(redirect_chain(Rule(Match(), Bypass(), why)), Family.V4)


def test_rules_keep_their_order() -> None:
    ruleset = compile_policy(POLICIES["exclude_100_ranges_stay_rules"])
    found = [rule.destination for rule in own_rules(ruleset) if rule.destination]
    assert found == [str(network) for network in POLICIES["exclude_100_ranges_stay_rules"].exclude_ranges]


def test_equal_ranges_share_one_program_and_others_do_not() -> None:
    networks = tuple(ranges(*scattered(101)))
    one = pin_path(RangeSet("exclude4", Family.V4, networks))
    assert pin_path(RangeSet("include4", Family.V4, networks)) == one
    assert pin_path(RangeSet("exclude4", Family.V4, networks[:-1])) != one
