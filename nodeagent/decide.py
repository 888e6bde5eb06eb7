"""The reference semantics: what a policy makes of a connection.

One pure, stateless function, the precedence table row by row.  ``explain`` prints it, the
ledger takes its reasons from it, and a property test holds it against the real kernel.  It
refuses nothing: every connection gets a decision.
"""

from nodeagent.model import (
    DNS_PORT,
    LOOPBACK,
    Address,
    Connection,
    Decision,
    Family,
    Ipv6Mode,
    Network,
    Policy,
    Protocol,
    Reason,
    Sourced,
    Verdict,
)

ROWS = {
    1: "leaves through an excluded interface",
    2: "the proxy's own uid or gid",
    3: "destination port excluded",
    4: "destination range excluded",
    5: "DNS capture",
    6: "leaves through lo",
    7: "not TCP",
    8: "destination port included",
    9: "destination range included",
    10: "not included",
}
"""The precedence table; the first row that matches wins."""

_INTERCEPTED = {Reason.INCLUDED, Reason.DNS_CAPTURE}


def decide(policy: Policy, connection: Connection) -> Decision:
    """Return what *policy* makes of *connection*.

    >>> from ipaddress import ip_address
    >>> decide(Policy(), Connection(ip_address("203.0.113.10"), 443)).port
    15001
    """
    row, reason, matched, source = _first_match(policy, connection)
    port = None
    if reason in _INTERCEPTED:
        port = policy.dns_port if reason is Reason.DNS_CAPTURE else policy.proxy_port
        if Family(connection.destination.version) is Family.V6 and policy.ipv6 is Ipv6Mode.BYPASS:
            port, reason, source = None, Reason.IPV6_UNMANAGED, _source(policy, "ipv6")
    return Decision(
        verdict=Verdict.BYPASSED if port is None else Verdict.INTERCEPTED,
        reason=reason,
        rule=f"{row}: {ROWS[row]}",
        source=source,
        port=port,
        matched=matched,
    )


def describe(decision: Decision) -> dict[str, object]:
    """Return what ``explain -o json`` and the API say of *decision*."""
    return {
        "verdict": decision.verdict.value,
        "port": decision.port,
        "reason": decision.reason.value,
        "rule": decision.rule,
        "matched": decision.matched,
        "source": decision.source,
    }


def names_loopback(network: Network) -> bool:
    """Say whether *network* lies inside the loopback ranges, and so names them on purpose.

    >>> from ipaddress import ip_network
    >>> names_loopback(ip_network("127.1.2.3/32")), names_loopback(ip_network("0.0.0.0/0"))
    (True, False)
    """
    return any(
        network.version == loopback.version and network.subnet_of(loopback)  # type: ignore[arg-type]  # versions are equal
        for loopback in LOOPBACK
    )


_Row = tuple[int, Reason, str | None, str]


def _first_match(policy: Policy, connection: Connection) -> _Row:
    """Walk the table; split in halves only to keep each one readable."""
    return _exempted(policy, connection) or _captured(policy, connection)


def _exempted(policy: Policy, connection: Connection) -> _Row | None:
    """Rows 1 to 4: whatever these match is never touched."""
    for item in policy.exclude_interfaces:
        if item.value == connection.interface:
            return 1, Reason.EXCLUDED_INTERFACE, item.value, item.source
    if connection.uid in policy.proxy_uids:
        return 2, Reason.EXEMPT_OWNER, f"uid {connection.uid}", _source(policy, "proxy_uids")
    if connection.gid in policy.proxy_gids:
        return 2, Reason.EXEMPT_OWNER, f"gid {connection.gid}", _source(policy, "proxy_gids")
    if connection.protocol is not Protocol.OTHER:
        port = policy.exclude_ports.find(connection.port)
        if port:
            return 3, Reason.EXCLUDED_PORT, str(port.value), port.source
    network = policy.exclude_ranges.find(connection.destination)
    if network:
        return 4, Reason.EXCLUDED_CIDR, str(network.value), network.source
    return None


def _captured(policy: Policy, connection: Connection) -> _Row:  # noqa: PLR0911  # one a row
    """Rows 5 to 10: what is left is intercepted, or bypasses for want of a row."""
    has_port = connection.protocol is not Protocol.OTHER
    if policy.dns_capture and has_port and connection.port == DNS_PORT:
        return 5, Reason.DNS_CAPTURE, f"port {DNS_PORT}", _source(policy, "dns_capture")
    included = policy.include_ranges.find(connection.destination)
    if connection.interface == "lo" and not _names(included, connection.destination):
        return 6, Reason.LOOPBACK, "lo", "the pod talking to itself"
    if connection.protocol is not Protocol.TCP:
        return 7, Reason.NON_TCP, connection.protocol.value, "only TCP is intercepted"
    port = policy.include_ports.find(connection.port)
    if port:
        return 8, Reason.INCLUDED, str(port.value), port.source
    if policy.include_ranges.every:
        return 9, Reason.INCLUDED, "*", policy.include_ranges.every.source
    if included:
        return 9, Reason.INCLUDED, str(included.value), included.source
    return 10, Reason.NOT_INCLUDED, None, _source(policy, "include_ranges")


def _names(included: Sourced[Network] | None, destination: Address) -> bool:
    return included is not None and destination.is_loopback and names_loopback(included.value)


def _source(policy: Policy, name: str) -> str:
    return policy.sources.get(name, "default")
