"""What may leave a pod, row by row, and the tests that hold counting to it: real sockets, exact in class and bytes.

Each row is proven in both families and under both backends where those make a difference, on this kernel and on the
oldest that we support; ``elsewhere`` says why a test of a row runs on this machine's kernel alone.
"""

from dataclasses import dataclass
from typing import Final

_COUNTING, _TCP, _GUARD = (f"tests/kernel/test_counting{part}.py" for part in ("", "_tcp", "_guard"))


@dataclass(frozen=True)
class Row:
    """One row.  ``scenarios`` are of ``test_counting``, by what they say; ``tests`` are functions, by file."""

    says: str
    scenarios: tuple[str, ...] = ()
    tests: tuple[tuple[str, str], ...] = ()
    elsewhere: str = ""


def _tcp(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((_TCP, f"test_{name}") for name in names)


ROWS: Final = (
    Row(
        "TCP that is redirected, IPv4, IPv6 and v4-mapped: intercepted, under whom the app dialled; the sidecar's own",
        (
            "TCP over IPv4 is redirected",
            "TCP over IPv6 is redirected",
            "TCP to a v4-mapped address is IPv4",
            "the sidecar passes on what it intercepted",
            "three connections to one destination are one flow",
        ),
    ),
    Row(
        "an excluded range, an excluded port: bypassed",
        ("an excluded range, IPv4", "an excluded range, IPv6", "an excluded port"),
    ),
    Row(
        "the proxy's uid or gid in the app's container: an impostor",
        ("an app with the proxy's uid is an impostor", "an app with the proxy's gid is an impostor"),
    ),
    Row(
        "UDP, connected or not, fragmented, alternating",
        (
            "UDP, connected, IPv4",
            "UDP, connected, IPv6",
            "UDP, unconnected, IPv4",
            "UDP, unconnected, IPv6",
            "UDP to a v4-mapped address is IPv4",
            "a datagram that will be fragmented is one packet, IPv4",
            "a datagram that will be fragmented is one packet, IPv6",
            "UDP that alternates between two destinations is two connections",
            "a datagram with an address of its own on a connected socket",
        ),
    ),
    Row(
        "DNS that is captured, connected and not; a resolver that is not captured",
        (
            "DNS over UDP, connected",
            "DNS over UDP, unconnected",
            "DNS over UDP, IPv6",
            "DNS over UDP, unconnected, IPv6",
            "DNS over TCP",
            "a resolver that is excluded",
        ),
    ),
    Row(
        "ICMP by a raw and by a ping socket",
        ("a ping by a raw socket", "a ping by a raw socket, IPv6", "a ping by a ping socket"),
    ),
    Row("TCP that a raw socket forges", ("TCP that a raw socket forges",)),
    Row(
        "frames past every socket hook: the wire guard tells",
        tests=(
            (_GUARD, "test_frames_past_the_sockets_are_told"),
            (_GUARD, "test_what_is_counted_and_what_is_unseen_add_up"),
        ),
    ),
    Row(
        "refused, and refused behind the proxy: one connection each",
        ("a refused connection", "a connection refused behind the proxy"),
    ),
    Row("SYNs that nobody answers: one connection", tests=_tcp("a_connection_that_nobody_answers_is_one")),
    Row(
        "the pod talking to itself: not egress",
        (
            "an app that talks to an app over loopback",
            "an app that talks to the pod's own address",
            "UDP over loopback",
        ),
    ),
    Row("a node-local address", ("TCP to a node-local address", "UDP to a node-local address")),
    Row(
        "100 MB on both paths: payload is what the kernel says it sent",
        tests=_tcp("payload_is_what_the_kernel_says_it_sent", "payload_of_100_megabytes"),
        elsewhere="an emulated kernel sends 8 MB, by the same lines of code",
    ),
    Row(
        "the same with losses: what was retransmitted is counted again",
        tests=_tcp("payload_of_100_megabytes_with_losses"),
        elsewhere="an emulated kernel takes minutes for it",
    ),
    Row(
        "rules that come or go mid-stream, a connection that conntrack forgot: each packet in its class",
        tests=_tcp("rules_that_come_mid_stream", "rules_that_go_mid_stream", "a_connection_that_conntrack_forgot"),
    ),
    Row("a new connection after a flush", tests=_tcp("a_connection_after_the_rules_were_flushed")),
    Row(
        "fast open, a connect that does not block, MPTCP",
        tests=_tcp(
            "fast_open_counts_the_bytes_in_the_syn",
            "a_connect_that_does_not_block",
            "a_socket_that_dials_twice_is_two_connections",
            "mptcp_is_counted_by_its_subflow",
        ),
    ),
    Row("a socket that another pod's process uses", ("a socket that a process of another pod connects",)),
    Row(
        "inbound: not counted",
        ("somebody dials a server in the pod, TCP", "somebody dials a server in the pod, UDP"),
    ),
    Row("TPROXY of what the pod sends", tests=_tcp("tproxy_of_what_the_pod_sends_is_interception")),
    Row(
        "sockets older than counting, and older than their pod's enrolment",
        tests=_tcp("sockets_older_than_counting", "a_connection_that_began_before_its_pod_was_enrolled"),
    ),
    Row("somebody else's DNAT", tests=_tcp("somebody_elses_dnat_is_neither")),
    Row(
        "a container with cgroups of its own; a pod without one",
        tests=_tcp(
            "a_container_that_makes_cgroups_of_its_own_is_one_container",
            "a_pod_without_a_cgroup_of_its_own_is_known_by_its_namespace",
        ),
        elsewhere="Linux 5.10 does not tell user space a namespace's cookie",
    ),
)
