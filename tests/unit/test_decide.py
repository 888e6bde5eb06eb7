"""The reference semantics on the shared cases, and on the precedence of each row over those after it."""

from ipaddress import ip_address

import pytest

from nodeagent.decide import decide
from nodeagent.model import Connection, Protocol
from nodeagent.policy import DEFAULT, read_configuration, resolve
from tests.cases import Case, as_annotations, load, load_connection_cases

CASES = [case for case in load_connection_cases() if case.phase is None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_connection_case_is_decided_as_expected(case: Case) -> None:
    resolution = resolve(case.annotations)
    assert not resolution.rejected
    decision = decide(resolution.policy, case.connection)
    found = (decision.verdict.value, decision.reason.value, decision.port)
    assert found == (case.verdict, case.reason, case.port)


def test_the_cases_defaults_are_the_products() -> None:
    """Else a case would mean one thing in the file and another on a pod that sets only what the case sets."""
    cases = load("connections.yaml")
    policy = resolve(as_annotations(cases["defaults"])).policy
    assert (policy.include_ranges.every is not None) == (DEFAULT.policy.include_ranges.every is not None)
    for name in ("exclude_ranges", "include_ports", "exclude_ports", "exclude_interfaces"):
        assert getattr(policy, name) == getattr(DEFAULT.policy, name)
    for name in ("proxy_uids", "proxy_gids", "dns_capture", "mode"):
        assert getattr(policy, name) == getattr(DEFAULT.policy, name)
    assert cases["ports"] == {"outbound": DEFAULT.policy.proxy_port, "dns": DEFAULT.policy.dns_port}


def test_the_source_of_a_decision_is_what_the_user_wrote() -> None:
    configuration = read_configuration(
        "ranges: {payments-db: [10.20.0.0/16]}\ndefaults: {excludeOutboundPorts: '3306'}"
    )
    policy = resolve({"nodeagent.io/excludeOutboundIPRanges": "@payments-db"}, configuration).policy

    def source(destination: str, port: int) -> str:
        return decide(policy, Connection(ip_address(destination), port)).source

    assert source("10.20.1.2", 443) == "annotation nodeagent.io/excludeOutboundIPRanges (@payments-db)"
    assert source("10.20.1.2", 3306) == "configuration defaults.excludeOutboundPorts"
    assert source("192.0.2.1", 443) == "default"


LADDER = {
    "excluded_interface": {"nodeagent.io/excludeInterfaces": "lo"},
    "exempt_owner": {"nodeagent.io/proxyUID": "1000"},
    "excluded_port": {"nodeagent.io/excludeOutboundPorts": "53"},
    "excluded_cidr": {"nodeagent.io/excludeOutboundIPRanges": "127.0.0.53"},
    "dns_capture": {"nodeagent.io/dnsCapture": "true"},
    "loopback": {},
}
"""Rows 1 to 6, each with the annotation that makes one and the same connection match it."""


@pytest.mark.parametrize("first", range(len(LADDER)), ids=list(LADDER))
def test_a_row_beats_all_rows_after_it(first: int) -> None:
    """UDP to a resolver on loopback matches every row from 1 to 7: take the rows away from the top, one by one."""
    annotations = {key: value for row in list(LADDER.values())[first:] for key, value in row.items()}
    resolution = resolve(annotations)
    assert not resolution.rejected
    connection = Connection(ip_address("127.0.0.53"), 53, Protocol.UDP, uid=1000, gid=1000, interface="lo")
    assert decide(resolution.policy, connection).reason == list(LADDER)[first]


def test_ipv6_is_left_alone_where_the_configuration_says_so() -> None:
    policy = resolve({}, read_configuration("proxy: {ipv6: bypass}")).policy
    decision = decide(policy, Connection(ip_address("2001:db8::10"), 443))
    assert (decision.verdict, decision.reason, decision.port) == ("bypassed", "ipv6_unmanaged", None)
    assert decision.source == "configuration proxy.ipv6"
    assert decide(policy, Connection(ip_address("203.0.113.10"), 443)).port == 15001
