"""TCP at its edges: every byte of 100 MB, losses, rules that change mid-stream, sockets older than counting."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.bpf.counting import Counting, Settings, detach
from nodeagent.model.flow import NETNS_POD, FlowClass, FlowFlags, FlowOwner
from tests.kernel.conftest import counted_pod
from tests.kernel.counting_lab import CountedTopology, Row, bypassed, intercepted, oracle, proxied
from tests.kernel.tcp_info import settle
from tests.lab import Cgroup, Client, Connection, Dial, Netns, PodCgroups, Topology

pytestmark = pytest.mark.kernel

OUTSIDE, OUTSIDE_6 = BOTH = "203.0.113.10", "2001:db8:1::10"
SO_NETNS_COOKIE = 71
IPPROTO_MPTCP = 262
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
SINK_PORT = 7000
REDIRECT = """\
table inet byhand {
    chain out {
        type nat hook output priority -101
        meta skuid 1337 return
        oifname lo return
        meta l4proto tcp redirect to :15001
    }
}
"""
REDIRECT_SYNS = REDIRECT.replace("meta l4proto tcp", "tcp flags & (fin | syn | rst | ack) == syn")
TOOLS = "nft", "legacy"
LOSS = "insert rule inet world answers tcp dport 7000 numgen random mod 50 == 0 drop"
SINK = "insert rule inet world answers tcp dport 7000 accept"
MARK = 1337
DIVERT = f"""\
table inet divert {{
    chain out {{
        type route hook output priority mangle
        meta skuid 1000 tcp dport 443 meta mark set {MARK}
    }}
    chain in {{
        type filter hook prerouting priority mangle
        meta nfproto ipv4 meta mark {MARK} meta l4proto tcp tproxy ip to :15009
        meta nfproto ipv6 meta mark {MARK} meta l4proto tcp tproxy ip6 to :15009
    }}
}}
"""
DIVERT_ROUTES = f"""\
rule add fwmark {MARK} lookup 200
route add local default dev lo table 200
route add local ::/0 dev lo table 200
"""


@pytest.fixture
def pod(counting: Counting, node_cgroup: Cgroup, request: pytest.FixtureRequest) -> Iterator[CountedTopology]:
    """Count a fresh pod, without rules."""
    cgroups = PodCgroups(node_cgroup, f"{abs(hash(request.node.name))}")
    with (
        Topology(cgroups=cgroups) as topology,
        CountedTopology(topology, cgroups, counting, counted_pod(cgroups)) as lab,
    ):
        yield lab


@contextmanager
def sink(listener: socket.socket) -> Iterator[None]:
    """Read and forget whatever the first connection to *listener* brings."""

    def read() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            while connection.recv(1 << 20):
                pass

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()


def listener_at(lab: Topology, family: int, *, behind_proxy: bool) -> socket.socket:
    """Return a socket that gets what is dialled, or what is redirected."""
    netns, port = (lab.pod, 15001) if behind_proxy else (lab.world, SINK_PORT)
    anywhere = "::" if family == socket.AF_INET6 else "0.0.0.0"
    if behind_proxy:
        lab.sidecar.hush("tcp", anywhere, port)
        lab.pod.nft(REDIRECT_SYNS)
    else:
        lab.world.nft(SINK)
    sock = netns.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if behind_proxy:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((anywhere, port))
        sock.listen()
    else:
        listen_transparently(sock, family, port)
    return sock


def listen_transparently(sock: socket.socket, family: int, port: int) -> None:
    """Listen at *port* for whatever a route or TPROXY brings, whatever its destination."""
    is_v6 = family == socket.AF_INET6
    if is_v6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    level, option = (socket.IPPROTO_IPV6, IPV6_TRANSPARENT) if is_v6 else (socket.IPPROTO_IP, IP_TRANSPARENT)
    sock.setsockopt(level, option, 1)
    sock.bind(("::" if is_v6 else "0.0.0.0", port))
    sock.listen()


def send_much(pod: CountedTopology, family: int, *, behind_proxy: bool, size: int) -> None:
    """Send *size* bytes, and hold the slot against what the kernel says about the connection."""
    destination = OUTSIDE_6 if family == socket.AF_INET6 else OUTSIDE
    with (
        listener_at(pod.topology, family, behind_proxy=behind_proxy) as listener,
        sink(listener),
        pod.topology.client.socket(Dial(destination, SINK_PORT, timeout=60)) as sock,
    ):
        sock.connect((destination, SINK_PORT))
        block = b"x" * (1 << 20)
        for _ in range(size >> 20):
            sock.sendall(block)
        info = settle(sock)
        ((key, counters),) = pod.totals().items()
        Connection(sock).abort()
    assert (key.flow_class, str(key.destination), key.port) == (
        FlowClass.INTERCEPTED if behind_proxy else FlowClass.BYPASSED,
        destination,
        SINK_PORT,
    )
    assert counters.connections == 1
    assert counters.payload == info.sent
    assert counters.payload == size + info.retransmitted
    assert counters.segments == info.segments_out
    assert counters.received_packets <= info.segments_in  # GRO makes one of many
    headers = 40 if family == socket.AF_INET6 else 20
    assert counters.bytes - counters.payload >= counters.segments * (headers + 20)


@pytest.mark.parametrize("behind_proxy", [False, True], ids=["bypassed", "intercepted"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_payload_is_what_the_kernel_says_it_sent(family: int, behind_proxy: bool, pod: CountedTopology) -> None:  # noqa: FBT001
    send_much(pod, family, behind_proxy=behind_proxy, size=8 << 20)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("behind_proxy", [False, True], ids=["bypassed", "intercepted"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_payload_of_100_megabytes(family: int, behind_proxy: bool, pod: CountedTopology) -> None:  # noqa: FBT001
    send_much(pod, family, behind_proxy=behind_proxy, size=100 << 20)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_payload_of_100_megabytes_with_losses(family: int, pod: CountedTopology) -> None:
    # Dropped by nft on arrival: netem is a module that not every kernel has.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.kernel.test_counting_tcp.SINK", f"{SINK}\n{LOSS}")
        send_much(pod, family, behind_proxy=False, size=100 << 20)


def redirect(netns: Netns, tool: str, *, only_first: bool = False) -> None:
    """Redirect TCP as somebody would by hand; *only_first* packets of connections, or all of them."""
    if tool == "nft":
        netns.nft(REDIRECT_SYNS if only_first else REDIRECT)
        return
    syn = ["--syn"] if only_first else []
    rules = (
        ["-m", "owner", "--uid-owner", "1337", "-j", "RETURN"],
        ["-o", "lo", "-j", "RETURN"],
        ["-p", "tcp", *syn, "-j", "REDIRECT", "--to-ports", "15001"],
    )
    for iptables in ("iptables-legacy", "ip6tables-legacy"):
        for rule in rules:
            netns.run([iptables, "-t", "nat", "-A", "OUTPUT", *rule])


def flush(netns: Netns, tool: str) -> None:
    """Take away what :func:`redirect` made."""
    if tool == "nft":
        netns.nft("delete table inet byhand")
        return
    for iptables in ("iptables-legacy", "ip6tables-legacy"):
        netns.run([iptables, "-t", "nat", "-F", "OUTPUT"])


@contextmanager
def opened(pod: CountedTopology, port: int = 443) -> Iterator[list[Connection]]:
    """Dial in both families, and hang up at the end."""
    with ExitStack() as stack:
        dials = (Dial(address, port) for address in BOTH)
        yield [stack.enter_context(pod.topology.client.open_connection(dial)) for dial in dials]


def assert_reset(connections: list[Connection]) -> None:
    """Send once more on each, and be refused."""
    for connection in connections:
        with pytest.raises(OSError, match="reset"):
            connection.echo()


def test_a_connection_that_nobody_answers_is_one(pod: CountedTopology) -> None:
    pod.topology.world.nft("insert rule inet world answers tcp dport 9 drop")
    wires = [(6, address, 9) for address in BOTH]

    def fewest() -> int:
        return min(oracle(pod.topology.pod).get(wire, (0, 0))[0] for wire in wires)

    with pod.expect(*(bypassed(address, 9) for address in BOTH)), ExitStack() as opened_sockets:
        for address in BOTH:
            sock = opened_sockets.enter_context(pod.topology.client.socket(Dial(address, 9)))
            sock.setblocking(False)  # noqa: FBT003
            sock.connect_ex((address, 9))
        deadline = time.monotonic() + 60
        while fewest() < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert fewest() >= 3


@pytest.mark.parametrize("tool", TOOLS)
def test_rules_that_come_mid_stream(tool: str, pod: CountedTopology) -> None:
    rows = [row for at in BOTH for row in (bypassed(at, 443), intercepted(at, 443, connections=0))]
    with pod.expect(*rows), opened(pod) as connections:
        redirect(pod.topology.pod, tool)
        assert_reset(connections)


@pytest.mark.parametrize("tool", TOOLS)
def test_rules_that_go_mid_stream(tool: str, pod: CountedTopology) -> None:
    redirect(pod.topology.pod, tool)
    with pod.expect(*escaping()), opened(pod) as connections:
        flush(pod.topology.pod, tool)
        assert_reset(connections)


def escaping() -> list[Row]:
    """Return what is counted of connections that were intercepted, and left for their own destinations mid-stream."""
    escaped = [bypassed(address, 443, connections=0, flags=FlowFlags.ESCAPED) for address in BOTH]
    return [*(intercepted(address, 443) for address in BOTH), *escaped]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_connection_that_conntrack_forgot(tool: str, pod: CountedTopology) -> None:
    redirect(pod.topology.pod, tool, only_first=True)
    # The last reset may be the kernel's own, for a socket that has gone: nft sees it, we do not.
    with pod.expect(*escaping(), compare_wire=False), opened(pod) as connections:
        pod.topology.pod.set_sysctls({"net/netfilter/nf_conntrack_tcp_timeout_established": "0"})
        for connection in connections * 2:  # the first leaves an entry that is gone when the second comes, if so far
            with suppress(OSError):
                connection.echo()


@pytest.mark.parametrize("tool", TOOLS)
def test_a_connection_after_the_rules_were_flushed(tool: str, pod: CountedTopology) -> None:
    redirect(pod.topology.pod, tool)
    flush(pod.topology.pod, tool)
    with pod.expect(*(bypassed(address, 443) for address in BOTH)), opened(pod) as connections:
        for connection in connections:
            connection.abort()


def test_fast_open_counts_the_bytes_in_the_syn(pod: CountedTopology) -> None:
    for netns in (pod.topology.pod, pod.topology.world):
        netns.set_sysctls({"net/ipv4/tcp_fastopen": str(0x607)})  # both sides, no cookie
    early = b"earlier than the handshake"
    for family, address in ((socket.AF_INET, OUTSIDE), (socket.AF_INET6, OUTSIDE_6)):
        with (
            listener_at(pod.topology, family, behind_proxy=False) as listener,
            sink(listener),
            pod.expect(bypassed(address, SINK_PORT)),
            pod.topology.client.socket(Dial(address, SINK_PORT)) as sock,
        ):
            sock.sendto(early, socket.MSG_FASTOPEN, (address, SINK_PORT))
            assert settle(sock).sent == len(early)
            (payload,) = (c.payload for key, c in pod.totals().items() if str(key.destination) == address)
            assert payload == len(early)
            Connection(sock).abort()


def test_a_connect_that_does_not_block(pod: CountedTopology) -> None:
    pod.topology.pod.nft(REDIRECT)
    for address in BOTH:
        with pod.expect(intercepted(address, 443)), pod.topology.client.socket(Dial(address, 443)) as sock:
            sock.setblocking(False)  # noqa: FBT003
            sock.connect_ex((address, 443))
            sock.settimeout(10)
            assert sock.recv(100).startswith(b"sidecar ")
            Connection(sock).abort()


def test_a_socket_that_dials_twice_is_two_connections(pod: CountedTopology) -> None:
    pod.topology.refuse("tcp", 81)
    for address in BOTH:
        with (
            pod.expect(bypassed(address, 81), bypassed(address, 443)),
            pod.topology.client.socket(Dial(address, 443)) as sock,
        ):
            sock.settimeout(None)  # with a time limit the kernel never hears that the first attempt is over
            with pytest.raises(ConnectionRefusedError):
                sock.connect((address, 81))
            sock.connect((address, 443))
            assert sock.recv(100).startswith(b"world ")
            Connection(sock).abort()


def test_mptcp_is_counted_by_its_subflow(pod: CountedTopology) -> None:
    unknown = FlowOwner.GID_UNKNOWN  # the kernel itself makes the subflow's socket
    if not Path("/proc/sys/net/mptcp").exists():  # as in Debian's 5.10
        with pytest.raises(OSError, match="Protocol not supported"):
            pod.topology.pod.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
        return
    for family, address in ((socket.AF_INET, OUTSIDE), (socket.AF_INET6, OUTSIDE_6)):
        with (
            pod.expect(bypassed(address, 443, owner=unknown)),
            pod.topology.pod.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP, uid=1000, gid=1000) as sock,
        ):
            sock.settimeout(10)
            sock.connect((address, 443))
            assert sock.recv(100).startswith(b"world ")
            Connection(sock).abort()


def test_tproxy_of_what_the_pod_sends_is_interception(pod: CountedTopology) -> None:
    lab = pod.topology
    pod.counting.enrol(replace(pod.pod, tproxy_mark=MARK))
    lab.pod.nft(DIVERT)
    lab.pod.ip(DIVERT_ROUTES)
    lab.pod.run(["ip", "-6", "rule", "add", "fwmark", str(MARK), "lookup", "200"])  # a batch cannot say which family
    sidecar = str(pod.cgroups.sidecar.path)
    for family, address in ((socket.AF_INET, OUTSIDE), (socket.AF_INET6, OUTSIDE_6)):
        row = intercepted(address, 443, wire=(6, address, 443))
        with lab.pod.socket(family, socket.SOCK_STREAM, uid=1337, gid=1337, cgroup=sidecar) as listener:
            listen_transparently(listener, family, 15009)
            with (
                sink(listener),
                pod.expect(row),
                lab.client.socket(Dial(address, 443, cgroup=str(pod.cgroups.app.path))) as sock,
            ):
                sock.connect((address, 443))
                sock.sendall(b"to whom it may concern")
                settle(sock)
                Connection(sock).abort()


def test_a_container_that_makes_cgroups_of_its_own_is_one_container(pod: CountedTopology) -> None:
    dials = [
        Dial(OUTSIDE, port, cgroup=str(container.child("init").child("service").path))
        for port, container in ((443, pod.cgroups.app), (444, pod.cgroups.sidecar))
    ]
    with pod.expect(bypassed(OUTSIDE, 443), proxied(OUTSIDE, 444, owner=FlowOwner.NONE)):
        for dial in dials:
            pod.topology.client.open_connection(dial).abort()


def test_somebody_elses_dnat_is_neither(pod: CountedTopology) -> None:
    elsewhere = {OUTSIDE: "198.51.100.9", OUTSIDE_6: "2001:db8:9::9"}
    for family, (address, to) in zip(("ip", "ip6"), elsewhere.items(), strict=True):
        place = f"[{to}]" if family == "ip6" else to
        pod.topology.pod.nft(
            f"table {family} elsewhere {{ chain out {{ type nat hook output priority -100; "
            f"{family} daddr {address} tcp dport 443 dnat to {place}:8443; }}; }}"
        )
    rows = [
        replace(bypassed(address, 443, wire=(6, to, 8443)), flow_class=FlowClass.TRANSLATED)
        for address, to in elsewhere.items()
    ]
    with pod.expect(*rows), opened(pod) as connections:
        for connection in connections:
            assert connection.echo() == "world"
            connection.abort()


def test_sockets_older_than_counting(counting_settings: Settings, node_cgroup: Cgroup) -> None:
    cgroups = PodCgroups(node_cgroup, "older")
    rows = [
        replace(row, connections=0, flags=FlowFlags.UNSEEN, owner=FlowOwner.GID_UNKNOWN)
        for address in BOTH
        for row in (bypassed(address, 443), intercepted(address, 444))
    ]
    with Topology(cgroups=cgroups) as lab, ExitStack() as stack:

        def dial(client: Client, port: int, *addresses: str) -> list[Connection]:
            return [stack.enter_context(client.open_connection(Dial(address, port))) for address in addresses]

        lab.app.serve("tcp", 8080)
        direct = dial(lab.client, 443, *BOTH)
        lab.pod.nft(REDIRECT_SYNS)
        redirected = dial(lab.client, 444, *BOTH)
        inbound = dial(lab.outside_client, 8080, "10.244.1.5", "fd00:244:1::5")
        with (
            Counting.load(counting_settings) as counting,
            CountedTopology(lab, cgroups, counting, counted_pod(cgroups)) as pod,
            pod.expect(*rows),
        ):
            heard = [[connection.echo() for connection in those] for those in (direct, redirected, inbound)]
            assert heard == [["world"] * 2, ["sidecar"] * 2, ["app-local"] * 2]
            for connection in (*direct, *redirected):
                connection.abort()
    detach(counting_settings.bpffs)


def test_a_connection_that_began_before_its_pod_was_enrolled(counting: Counting, node_cgroup: Cgroup) -> None:
    cgroups = PodCgroups(node_cgroup, "late")
    with Topology(cgroups=cgroups) as lab, ExitStack() as stack:
        connections = [stack.enter_context(lab.client.open_connection(Dial(address, 443))) for address in BOTH]
        with (
            CountedTopology(lab, cgroups, counting, counted_pod(cgroups)) as pod,
            pod.expect(*(bypassed(address, 443, connections=0, flags=FlowFlags.UNSEEN) for address in BOTH)),
        ):
            for connection in connections:
                assert connection.echo() == "world"
                connection.abort()


@pytest.mark.exhaustive  # 5.10 does not tell user space a namespace's cookie
def test_a_pod_without_a_cgroup_of_its_own_is_known_by_its_namespace(counting: Counting, node_cgroup: Cgroup) -> None:
    shared = PodCgroups(node_cgroup, "shared")  # nobody enrols this one's id
    with Topology(cgroups=shared) as lab:
        with lab.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")
        by_cookie = replace(counted_pod(shared), id=NETNS_POD | cookie, sidecars=frozenset())
        with CountedTopology(lab, shared, counting, by_cookie) as pod:
            rows = (
                bypassed(OUTSIDE, 443, container="0"),
                replace(proxied(OUTSIDE, 444, owner=FlowOwner.UID), container="0"),
            )
            with pod.expect(*rows):
                lab.client.open_connection(Dial(OUTSIDE, 443)).abort()
                lab.client.open_connection(Dial(OUTSIDE, 444, uid=1337)).abort()
