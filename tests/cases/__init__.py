"""The cases that several kinds of tests share, as data: YAML beside this file, read here and nowhere else."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import yaml

from nodeagent.model import Connection, Protocol

_HERE = Path(__file__).parent

ANNOTATIONS: Final = {
    "include_outbound_cidrs": "nodeagent.io/includeOutboundIPRanges",
    "exclude_outbound_cidrs": "nodeagent.io/excludeOutboundIPRanges",
    "include_outbound_ports": "nodeagent.io/includeOutboundPorts",
    "exclude_outbound_ports": "nodeagent.io/excludeOutboundPorts",
    "exclude_interfaces": "nodeagent.io/excludeInterfaces",
    "proxy_uid": "nodeagent.io/proxyUID",
    "proxy_gid": "nodeagent.io/proxyGID",
    "dns_capture": "nodeagent.io/dnsCapture",
}
"""What each key of a connection case's ``config`` is called on a Pod."""


@dataclass(frozen=True, slots=True)
class Case:
    """One entry of ``connections.yaml``: these annotations, this connection, that outcome.

    ``annotations`` are only what the case sets itself: the file's defaults are the product's, which
    test_decide.py makes sure of.  ``reason`` is one of the contract's words, which are more than
    rules alone can give; ``port`` is the sidecar's, None where the connection is bypassed.
    ``phase`` is None, or says when the connection is opened; then ``tracking_before`` says whether
    connection tracking was on before our rules came, and ``tcp_loose`` what nf_conntrack_tcp_loose
    is set to (None: left alone).
    """

    id: str
    annotations: Mapping[str, str]
    connection: Connection
    verdict: str
    reason: str
    port: int | None = None
    phase: str | None = None
    tracking_before: bool = False
    tcp_loose: int | None = None


@cache
def load(name: str) -> Any:  # noqa: ANN401  # YAML has no narrower type
    """Return the YAML file *name* of this folder as plain data; do not change it."""
    return yaml.safe_load((_HERE / name).read_text(encoding="utf-8"))


def load_connection_cases() -> list[Case]:
    """Return the cases of ``connections.yaml``, those with a phase included."""
    return [_case(entry) for entry in load("connections.yaml")["cases"]]


def as_annotations(config: Mapping[str, str | bool]) -> dict[str, str]:
    """Return a case's ``config`` as the annotations of a Pod.

    >>> as_annotations({"dns_capture": True})
    {'nodeagent.io/dnsCapture': 'true'}
    """
    return {ANNOTATIONS[key]: str(value).lower() for key, value in config.items()}


def _case(entry: Mapping[str, Any]) -> Case:
    expected = entry["expect"]
    return Case(
        id=entry["id"],
        annotations=as_annotations(entry.get("config", {})),
        connection=_connection({**load("connections.yaml")["conn_defaults"], **entry["conn"]}),
        verdict=expected["verdict"],
        reason=expected["reason"],
        port=expected.get("port"),
        phase=entry.get("phase"),
        tracking_before=entry.get("tracking_before", False),
        tcp_loose=entry.get("tcp_loose"),
    )


def _connection(conn: Mapping[str, Any]) -> Connection:
    return Connection(
        destination=ip_address(conn["dst"]),
        port=conn["dport"],
        protocol=Protocol(conn["proto"]),
        uid=conn["uid"],
        gid=conn["gid"],
        interface=_interface(conn["dst"]),
    )


def _interface(destination: str) -> str:
    """Return what packets to *destination* leave through: ``lo`` for loopback and the pod's own addresses."""
    topology = load("connections.yaml")["topology"]
    own = {ip_address(address) for addresses in topology["pod"].values() for address in addresses}
    address = ip_address(destination)
    if address.is_loopback or address in own:
        return "lo"
    return str(topology["routed"].get(destination, "eth0"))
