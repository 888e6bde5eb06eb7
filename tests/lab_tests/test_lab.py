"""The lab tells intercepted from bypassed under rules written by hand, and leaves nothing behind."""

import fcntl
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import (
    POD_ADDRESSES,
    Backend,
    Dial,
    LabError,
    LoadPlan,
    Netns,
    NotConnectedError,
    SidecarSettings,
    Topology,
    istio_like,
    legacy_save,
    nft_save,
    strangers_legacy,
    strangers_nft,
    topology,
)
from tests.lab.dns import MARKS

pytestmark = [pytest.mark.kernel, pytest.mark.exhaustive]  # emulated kernels run what uses it

NFT_RULES = """\
table inet byhand {
    chain out {
        type nat hook output priority -101
        meta skuid 1337 return
        meta skgid 1337 return
        oifname net1 return
        ip daddr 198.51.100.0/24 return
        ip6 daddr 2001:db8:5::/48 return
        udp dport 53 redirect to :15053
        oifname lo return
        tcp flags & (fin | syn | rst | ack) == syn redirect to :15001
    }
}
"""

IPTABLES_RULES = """\
*nat
-A OUTPUT -m owner --uid-owner 1337 -j RETURN
-A OUTPUT -m owner --gid-owner 1337 -j RETURN
-A OUTPUT -o net1 -j RETURN
-A OUTPUT -d {excluded} -j RETURN
-A OUTPUT -p udp --dport 53 -j REDIRECT --to-ports 15053
-A OUTPUT -o lo -j RETURN
-A OUTPUT -p tcp --syn -j REDIRECT --to-ports 15001
COMMIT
"""

UNTOUCHED = {
    "IPv4 TCP": (Dial("203.0.113.10", 443), "world"),
    "IPv6 TCP": (Dial("2001:db8::10", 443), "world"),
    "IPv4 UDP": (Dial("203.0.113.10", 443, "udp"), "world"),
    "IPv6 UDP": (Dial("2001:db8::10", 443, "udp"), "world"),
    "a v4-mapped address": (Dial("::ffff:203.0.113.10", 443), "world"),
    "the DNS port, TCP": (Dial("10.96.0.10", 53), "world"),
    "the lowest and the highest port": (Dial("203.0.113.10", 1), "world"),
    "the highest port": (Dial("2001:db8::10", 65535, "udp"), "world"),
    "the port the world listens on": (Dial("203.0.113.10", 9000), "world"),
    "the gateway": (Dial("10.244.1.1", 80), "world"),
    "a neighbour in the pod's IPv4 subnet": (Dial("10.244.1.99", 80), "world"),
    "a neighbour in the pod's IPv6 subnet": (Dial("fd00:244:1::99", 80), "world"),
    "an address behind net1": (Dial("172.16.9.9", 443), "world"),
    "any address, through net1": (Dial("203.0.113.10", 443, interface="net1"), "world"),
    "from an extra address on lo": (Dial("2001:db8::10", 443, source=("::6", 0)), "world"),
    "a neighbour behind net1": (Dial("192.168.77.99", 443), "world"),
    "from an address and a port of choice": (Dial("203.0.113.10", 443, source=("192.168.77.5", 12345)), "world"),
    "localhost": (Dial("127.0.0.1", 8080), "app-local"),
    "IPv6 localhost": (Dial("::1", 8080), "app-local"),
    "another loopback address, UDP": (Dial("127.0.0.53", 53, "udp"), "app-local"),
    "the pod's own address": (Dial("10.244.1.5", 8080), "app-local"),
    "the pod's own address, IPv6 UDP": (Dial("fd00:244:1::5", 8080, "udp"), "app-local"),
    "an extra address on lo": (Dial("::6", 8080), "app-local"),
    "the sidecar, on purpose": (Dial("127.0.0.1", 15001), "sidecar"),
}

UNDER_RULES = {
    "IPv4 TCP is intercepted": (Dial("203.0.113.10", 443), "intercepted", 15001),
    "IPv6 TCP is intercepted": (Dial("2001:db8::10", 443), "intercepted", 15001),
    "root is intercepted": (Dial("203.0.113.10", 443, uid=0, gid=0), "intercepted", 15001),
    "the proxy's uid is bypassed": (Dial("203.0.113.10", 443, uid=1337), "bypassed", None),
    "the proxy's uid is bypassed on IPv6": (Dial("2001:db8::10", 443, uid=1337), "bypassed", None),
    "the proxy's gid is bypassed": (Dial("203.0.113.10", 443, gid=1337), "bypassed", None),
    "the proxy's gid is bypassed on IPv6": (Dial("2001:db8::10", 443, gid=1337), "bypassed", None),
    "the next uid and gid are intercepted": (Dial("203.0.113.10", 443, uid=1338, gid=1336), "intercepted", 15001),
    "an excluded range is bypassed": (Dial("198.51.100.20", 443), "bypassed", None),
    "an excluded IPv6 range is bypassed": (Dial("2001:db8:5::1", 443), "bypassed", None),
    "an excluded interface is bypassed": (Dial("172.16.9.9", 443), "bypassed", None),
    "an interface chosen by the socket is bypassed": (Dial("203.0.113.10", 443, interface="net1"), "bypassed", None),
    "UDP is bypassed": (Dial("203.0.113.10", 443, "udp"), "bypassed", None),
    "DNS is intercepted": (Dial("10.96.0.10", 53, "udp"), "intercepted", 15053),
    "DNS over IPv6 is intercepted": (Dial("2001:db8::10", 53, "udp"), "intercepted", 15053),
    "DNS on loopback is intercepted": (Dial("127.0.0.53", 53, "udp"), "intercepted", 15053),
    "the proxy's own DNS is bypassed": (Dial("10.96.0.10", 53, "udp", uid=1337, gid=1337), "bypassed", None),
    "loopback is bypassed": (Dial("127.0.0.1", 8080), "bypassed", None),
    "the pod's own address is bypassed": (Dial("fd00:244:1::5", 8080), "bypassed", None),
}


def load_by_hand(netns: Netns, backend: Backend) -> None:
    if backend == "nft":
        netns.nft(NFT_RULES)
        return
    for command, excluded in (("iptables", "198.51.100.0/24"), ("ip6tables", "2001:db8:5::/48")):
        netns.run([f"{command}-legacy-restore", "--noflush"], IPTABLES_RULES.format(excluded=excluded))


@pytest.fixture
def lab() -> Iterator[Topology]:
    with Topology() as made:
        yield made


@pytest.fixture(scope="module")
def untouched() -> Iterator[Topology]:
    with Topology() as made:
        yield made


@pytest.fixture(scope="module", params=["nft", "legacy"])
def programmed(request: pytest.FixtureRequest) -> Iterator[Topology]:
    with Topology() as made:
        load_by_hand(made.pod, request.param)
        yield made


# ── verdicts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("dial", "who"), UNTOUCHED.values(), ids=UNTOUCHED)
def test_without_rules_whoever_is_dialled_answers(untouched: Topology, dial: Dial, who: str) -> None:
    outcome = untouched.client.connect(dial)
    assert (outcome.verdict, outcome.seen_by, outcome.port, outcome.answered) == ("bypassed", who, None, True)
    event = untouched.find(outcome.token)
    assert event is not None
    assert (event.proto, event.greeting) == (dial.proto, outcome.hops[0])
    if who == "world":
        assert outcome.original_destination == (dial.dst.removeprefix("::ffff:"), dial.port)
    if dial.source:
        assert outcome.source is not None
        assert outcome.source[0] == dial.source[0]
        assert outcome.source[1] == dial.source[1] or not dial.source[1]


@pytest.mark.parametrize(("dial", "verdict", "port"), UNDER_RULES.values(), ids=UNDER_RULES)
def test_under_rules_the_verdict_is_theirs(programmed: Topology, dial: Dial, verdict: str, port: int | None) -> None:
    outcome = programmed.client.connect(dial)
    assert (outcome.verdict, outcome.port, outcome.answered) == (verdict, port, True)
    if verdict == "intercepted":
        known = (dial.dst, dial.port) if dial.proto == "tcp" else None
        assert (outcome.seen_by, outcome.original_destination) == ("sidecar", known)


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_borrowed_socket_is_judged_like_a_real_users(lab: Topology, backend: Backend) -> None:
    load_by_hand(lab.pod, backend)
    program = (
        "import socket; s = socket.create_connection(('203.0.113.10', 443), 10); print(s.recv(99).split()[0].decode())"
    )
    for uid, gid in ((1000, 1000), (1337, 1000), (1000, 1337), (0, 0)):
        real = lab.pod.run([sys.executable, "-S", "-c", program], uid=uid, gid=gid).strip()
        assert lab.client.connect(Dial("203.0.113.10", 443, uid=uid, gid=gid)).seen_by == real


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_minimal_mesh_intercepts_in_both_families(lab: Topology, backend: Backend) -> None:
    istio_like(lab.pod, backend)
    for address in ("203.0.113.10", "2001:db8::10"):
        assert lab.client.connect(Dial(address, 443)).port == 15001
        assert lab.client.connect(Dial(address, 443, uid=1337)).seen_by == "world"
    assert lab.client.connect(Dial("127.0.0.1", 8080)).seen_by == "app-local"


def test_a_connection_sent_to_neither_end_is_diverted(lab: Topology) -> None:
    lab.app.serve("tcp", 18080)
    lab.pod.nft(
        "table ip stray { chain out { type nat hook output priority -100; tcp dport 80 redirect to :18080; }; }"
    )
    outcome = lab.client.connect(Dial("203.0.113.10", 80))
    assert (outcome.verdict, outcome.seen_by, outcome.port) == ("diverted", "app-local", None)


@pytest.mark.parametrize("address", ["203.0.113.10", "2001:db8::10"])
def test_errors_come_at_once_and_say_which(lab: Topology, address: str) -> None:
    for proto in ("tcp", "udp"):
        lab.refuse(proto, 81)
        outcome = lab.client.connect(Dial(address, 81, proto))
        assert (outcome.verdict, outcome.error) == ("refused", "ECONNREFUSED")
    lab.pod.nft("table inet wall { chain out { type filter hook output priority 0; udp dport 82 drop; }; }")
    assert lab.client.connect(Dial(address, 82, "udp")).verdict == "unreachable"


def test_a_sidecar_without_ipv6_refuses_it() -> None:
    with Topology(SidecarSettings(ipv6=False)) as lab:
        load_by_hand(lab.pod, "nft")
        assert lab.client.connect(Dial("2001:db8::10", 443)).verdict == "refused"
        assert lab.client.connect(Dial("2001:db8::10", 53, "udp")).verdict == "refused"
        assert lab.client.connect(Dial("203.0.113.10", 443)).verdict == "intercepted"


def test_where_a_datagram_arrived_counts_even_if_its_answer_is_lost(lab: Topology) -> None:
    lab.pod.nft("table inet wall { chain in { type filter hook input priority 0; udp sport 443 drop; }; }")
    outcome = lab.client.connect(Dial("203.0.113.10", 443, "udp", timeout=0.2))
    assert (outcome.verdict, outcome.seen_by, outcome.answered) == ("bypassed", "world", False)


def test_a_datagram_that_nobody_saw_is_a_timeout(lab: Topology) -> None:
    lab.world.nft("insert rule inet world answers udp dport 443 drop")
    outcome = lab.client.connect(Dial("203.0.113.10", 443, "udp", timeout=0.2))
    assert (outcome.verdict, outcome.seen_by) == ("timeout", None)


def test_the_world_can_dial_the_pod(lab: Topology) -> None:
    for dial in (Dial("10.244.1.5", 8080), Dial("fd00:244:1::5", 8080, "udp"), Dial("192.168.77.5", 8080)):
        assert lab.outside_client.connect(dial).seen_by == "app-local"


@pytest.mark.parametrize("proto", ["udp", "tcp"])
def test_a_resolver_is_known_by_its_answer(lab: Topology, proto: str) -> None:
    dial = Dial("10.96.0.10", 53, "tcp" if proto == "tcp" else "udp")
    assert lab.client.resolve("a.example", dial) == MARKS["world"]
    lab.pod.nft(
        f"table ip dns {{ chain out {{ type nat hook output priority 0; {proto} dport 53 redirect to :15053; }}; }}"
    )
    assert lab.client.resolve("a.example", dial) == MARKS["sidecar"]


# ── connections that last ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_open_connection_proves_itself_and_notices_its_reset(lab: Topology) -> None:
    load_by_hand(lab.pod, "nft")
    taken = lab.client.open_connection(Dial("203.0.113.10", 443))
    passed = lab.client.open_connection(Dial("198.51.100.20", 443))
    with taken, passed:
        assert (taken.echo(), passed.echo()) == ("sidecar", "world")
        lab.pod.run(["nft", "delete", "table", "inet", "byhand"])  # and with it the translation of `taken`
        with pytest.raises(ConnectionResetError):
            taken.echo()
        assert (taken.is_reset(), passed.is_reset()) == (True, False)
        assert passed.echo() == "world"


@pytest.mark.parametrize("address", ["203.0.113.10", "2001:db8::10"])
def test_a_peer_can_speak_first(lab: Topology, address: str) -> None:
    with lab.client.open_connection(Dial(address, 443)) as connection:
        assert lab.outside.say(connection.outcome.hops[-1], "news")
        assert connection.hear() == ("world", "news")
    assert not lab.sidecar.say(connection.outcome.hops[-1], "news")


@pytest.mark.parametrize("address", ["203.0.113.10", "2001:db8::10"])
def test_a_sidecar_that_passes_on_is_seen_and_so_is_the_world_behind_it(address: str) -> None:
    with Topology(SidecarSettings(passthrough=True)) as lab:
        load_by_hand(lab.pod, "legacy")
        with lab.client.open_connection(Dial(address, 443)) as connection:
            assert connection.outcome.verdict == "intercepted"
            assert [hop.who for hop in connection.outcome.hops] == ["sidecar", "world"]
            assert {hop.original for hop in connection.outcome.hops} == {(address, 443)}
            assert connection.echo() == "world"
            lab.sidecar.close()
            with pytest.raises(ConnectionResetError):
                connection.echo()


def test_a_udp_socket_keeps_its_port_and_sees_its_peer_change(lab: Topology) -> None:
    with lab.client.open_connection(Dial("10.96.0.10", 53, "udp")) as flow:
        assert flow.echo() == "world"
        load_by_hand(lab.pod, "nft")
        assert flow.echo() == "sidecar"


def test_a_connection_that_nobody_takes_is_an_error_with_an_outcome(lab: Topology) -> None:
    lab.refuse("tcp", 81)
    with pytest.raises(NotConnectedError, match="refused") as caught:
        lab.client.open_connection(Dial("203.0.113.10", 81))
    assert caught.value.outcome.verdict == "refused"


# ── load ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("passthrough", [False, True], ids=["answered by the sidecar", "passed on by the sidecar"])
def test_a_load_reports_every_connection(passthrough: bool) -> None:  # noqa: FBT001 - a parameter of the test
    targets = (("203.0.113.10", 443), ("198.51.100.20", 443), ("2001:db8::10", 443))
    with Topology(SidecarSettings(passthrough=passthrough)) as lab:
        load_by_hand(lab.pod, "nft")
        with lab.load(LoadPlan(targets, connections=600, workers=2)) as load:
            report = load.report()
    assert report.broken() == ()
    assert report.verdicts() == {
        (targets[0], "intercepted"): 400,
        (targets[1], "bypassed"): 400,
        (targets[2], "intercepted"): 400,
    }
    assert all(record.began < record.ended for record in report.records)


def test_a_load_sees_its_rules_change(lab: Topology) -> None:
    target = ("203.0.113.10", 443)
    with lab.load(LoadPlan((target,), in_flight=4)) as load:
        assert lab.outside.find("load", patience=30)
        load_by_hand(lab.pod, "nft")
        assert lab.sidecar.find("load", patience=30)
        assert not load.is_done()
        report = load.stop()
    assert set(report.verdicts()) == {(target, "bypassed"), (target, "intercepted")}
    assert report.broken() == ()
    last_bypassed = max(record.began for record in report.records if record.outcome.verdict == "bypassed")
    assert all(record.outcome.verdict == "intercepted" for record in report.records if record.began > last_bypassed)


def test_a_load_says_what_went_wrong(lab: Topology) -> None:
    lab.refuse("tcp", 81)
    lab.world.nft("insert rule inet world answers tcp dport 82 drop")
    targets = (("203.0.113.10", 81), ("2001:db8::10", 82), ("203.0.113.10", 83))
    with lab.load(LoadPlan(targets, connections=9, timeout=0.2)) as load:
        report = load.report()
    verdicts = {(targets[0], "refused"): 3, (targets[1], "timeout"): 3, (targets[2], "bypassed"): 3}
    assert report.verdicts() == verdicts
    assert {record.outcome.error for record in report.broken()} == {"ECONNREFUSED", "ETIMEDOUT"}


# ── other people's rules ──────────────────────────────────────────────────────────────────────────────────────────────


def test_strangers_change_no_verdict_and_their_snapshots_show_one_packet(lab: Topology) -> None:
    strangers_legacy(lab.pod)
    strangers_nft(lab.pod)
    legacy, nft = legacy_save(lab.pod), nft_save(lab.pod)
    assert set(legacy) == {f"{c} {t}" for c in ("iptables", "ip6tables") for t in ("raw", "mangle", "nat", "filter")}
    assert {"inet stranger", "ip nat", "ip6 filter", "iptables nat", "ip6tables mangle"} <= set(nft)
    assert (legacy_save(lab.pod), nft_save(lab.pod)) == (legacy, nft)
    assert lab.client.connect(Dial("203.0.113.10", 443)).verdict == "bypassed"
    assert lab.client.connect(Dial("2001:db8::10", 443)).verdict == "bypassed"
    after = legacy_save(lab.pod)
    assert after["iptables nat"] != legacy["iptables nat"]
    assert re.sub(r"\d+:\d+", "", after["iptables nat"]) == re.sub(r"\d+:\d+", "", legacy["iptables nat"])
    assert nft_save(lab.pod)["ip6 nat"] != nft["ip6 nat"]


def test_a_snapshot_brings_no_table_into_use() -> None:
    with Netns() as netns:
        assert (legacy_save(netns), nft_save(netns)) == ({}, {})
        assert netns.run(["cat", "/proc/net/ip_tables_names"]) == ""
        assert netns.run(["nft", "list", "tables"]) == ""


# ── nothing left behind, nothing else touched ─────────────────────────────────────────────────────────────────────────


def belongings() -> tuple[set[str], set[str]]:
    """Return this process's children and its open files."""
    children = set(Path("/proc/thread-self/children").read_text().split())
    files = {str(Path(link).readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()}
    return children, files


def namespaces_in_use() -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(path.stat().st_ino)
        except OSError:
            continue
    return found


def test_nothing_is_left_behind() -> None:
    before = belongings()
    with Topology() as lab:
        lab.client.connect(Dial("203.0.113.10", 443))
        with lab.load(LoadPlan((("203.0.113.10", 443),), connections=10)) as load:
            load.report()
        namespaces = {lab.pod.inode, lab.world.inode}
        assert namespaces <= namespaces_in_use()
    assert belongings() == before
    assert not namespaces & namespaces_in_use()
    lab.close()  # a second time is harmless


def test_nothing_is_left_behind_when_the_test_fails() -> None:
    def fail_inside() -> None:
        with (
            Topology() as lab,
            lab.load(LoadPlan((("203.0.113.10", 443),))),
            lab.client.open_connection(Dial("::1", 1)),
        ):
            raise KeyboardInterrupt

    before = belongings()
    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    assert belongings() == before


def test_nothing_is_left_behind_when_the_lab_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    before = belongings()
    monkeypatch.setattr(topology, "_WORLD_LINKS", "link set nowhere up\n")
    with pytest.raises(LabError, match=r"(?s)ip -batch - ended with 1.*   1  link set nowhere up"):
        Topology()
    assert belongings() == before


def test_killing_the_user_of_a_lab_ends_all_of_it() -> None:
    program = (
        "from tests.lab import *\n"
        "lab = Topology()\n"
        "load = lab.load(LoadPlan((('203.0.113.10', 443),)))\n"
        "print(open('/proc/thread-self/children').read(), flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as user:
        assert user.stdout is not None
        children = [os.pidfd_open(int(pid)) for pid in user.stdout.readline().split()]
        assert len(children) == 6  # two holders, three peers, one load worker
        user.send_signal(signal.SIGKILL)
    try:
        for child in children:
            assert select.select([child], [], [], 60)[0]
    finally:
        for child in children:
            os.close(child)


def test_the_user_of_a_lab_stays_where_it_is(lab: Topology) -> None:
    ours = Path("/proc/thread-self/ns/net").stat().st_ino
    assert len({ours, lab.pod.inode, lab.world.inode}) == 3
    with lab.pod.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        assert Path("/proc/thread-self/ns/net").stat().st_ino == ours
        assert not os.get_inheritable(sock.fileno())


def test_there_is_no_way_out(lab: Topology) -> None:
    for family in ("-4", "-6"):
        routes = lab.world.run(["ip", family, "route", "show", "table", "main"])
        assert "default" not in routes
        assert "::/0" not in routes
    links = lab.world.run(["ip", "-br", "link"]).split("\n")[:-1]
    assert sorted(re.split(r"[@ ]", link)[0] for link in links) == ["lo", "world0", "world1"]


def test_the_pod_has_the_addresses_of_the_cases(lab: Topology) -> None:
    shown = lab.pod.run(["ip", "-o", "addr", "show", "scope", "global"])
    assert set(re.findall(r"inet6? (\S+)/", shown)) == set(POD_ADDRESSES)


def test_nothing_speaks_unasked(lab: Topology) -> None:
    for netns in (lab.pod, lab.world):
        groups = netns.run(["ip", "-6", "maddr"])
        assert "ff02::1:ff" not in groups  # solicited-node groups are reported; ff02::1 is not (RFC 3810, 6)
        counted = dict(line.split() for line in netns.run(["cat", "/proc/net/snmp6"]).splitlines())
        assert counted["Ip6OutRequests"] == "0"


def test_iptables_takes_a_lock_of_its_own() -> None:
    with Netns() as netns, Path(netns.environment["XTABLES_LOCKFILE"]).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "xtables lock" in netns.attempt(["iptables-legacy", "-w", "1", "-t", "nat", "-S"]).stderr
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert netns.attempt(["iptables-legacy", "-t", "nat", "-S"]).returncode == 0


def test_sysctls_of_the_machine_are_out_of_reach() -> None:
    with Netns() as netns:
        netns.set_sysctls({"net/ipv4/ip_forward": "1"})
        assert netns.sysctl("net/ipv4/ip_forward") == "1"
        for name in ("kernel/pid_max", "net/../kernel/pid_max"):
            with pytest.raises(ValueError, match="not a sysctl of a network namespace"):
                netns.set_sysctls({name: "1"})
        with pytest.raises(FileNotFoundError):
            netns.sysctl("net/ipv4/nonsense")


def test_several_threads_may_dial(lab: Topology) -> None:
    load_by_hand(lab.pod, "nft")
    seen: list[str | None] = []

    def dial(address: str) -> None:
        seen.extend(lab.client.connect(Dial(address, 443)).seen_by for _ in range(100))

    threads = [threading.Thread(target=dial, args=[address]) for address in ("203.0.113.10", "198.51.100.20") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (seen.count("sidecar"), seen.count("world")) == (200, 200)
