"""The legacy backend against the real kernel and the real iptables-legacy."""

import fcntl
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from random import Random

import msgspec
import pytest

from nodeagent.compile import compile_policy
from nodeagent.compile.canonical import to_json
from nodeagent.compile.legacy import DEFAULT_BPFFS, TABLES
from nodeagent.errors import BusyError, KernelError, RefusedError
from nodeagent.legacy.encoded import Result
from nodeagent.legacy.entries import LAYOUTS
from nodeagent.model import Family, Network
from tests.cases.policies import POLICIES
from tests.conftest import GOLDENS
from tests.kernel.conftest import EVERY_POLICY
from tests.kernel.legacy_driver import Driver, policy_of
from tests.lab import Netns, istio_like, legacy_save, strangers_legacy

pytestmark = pytest.mark.kernel

COMMANDS = {Family.V4: "iptables", Family.V6: "ip6tables"}
RECEIVER = {Family.V4: ("198.18.0.9", "198.18.0.0/15"), Family.V6: ("2001:2::9", "2001:2::/48")}
VARIETY = ("default", "dns_capture_with_exclusions", "everything_at_once", "exclude_many_ports", "include_nothing")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with Driver(tmp_path_factory.mktemp("lock") / "xtables.lock") as child:
        yield child


@pytest.fixture
def visited(driver: Driver, pod: Netns) -> Netns:
    """Return a fresh namespace, with the driver in it."""
    driver("enter", pod.path)
    return pod


def iptables(driver: Driver, pod: Netns, *arguments: str, family: Family = Family.V4, stdin: str | None = None) -> str:
    """Run iptables-legacy, or its -restore if there is *stdin*, beside the driver."""
    command = f"{COMMANDS[family]}-legacy{'-restore' if stdin is not None else ''}"
    return pod.run([*beside(driver), command, *arguments], stdin)


def beside(driver: Driver) -> tuple[str, ...]:
    """Return what to put before a command so that it sees the driver's lock and pinned programs."""
    return ("nsenter", f"--mount=/proc/{driver.pid}/ns/mnt", "env", f"XTABLES_LOCKFILE={driver.lock}")


def stable(text: str) -> str:
    """Return what iptables-save says of our own rules: no comments, policies or counters, no table without rules."""
    lines = re.sub(r"^#.*\n|^:\S+ [A-Z]+ \[.*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^\*\w+\nCOMMIT\n", "", lines, flags=re.MULTILINE)


def saved(pod: Netns, family: Family) -> str:
    present = {key.split()[1] for key in legacy_save(pod) if key.startswith(f"{COMMANDS[family]} ")}
    command = f"{COMMANDS[family]}-legacy-save"
    return "".join(stable(pod.run([command, "-t", table])) for table in TABLES if table in present)


def without_ours(save: dict[str, str]) -> dict[str, str]:
    """Return a snapshot less our chains and rules; a table that we alone brought into use counts as none."""
    return {
        key: "".join(line for line in text.splitlines(keepends=True) if not re.search("nodeagent:|NODEAGENT_", line))
        for key, text in save.items()
    }


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_POLICY)
def test_the_kernel_holds_the_golden_text(name: str, driver: Driver, visited: Netns) -> None:
    driver("write", name)
    for family in Family:
        assert saved(visited, family) == (GOLDENS / f"legacy/{name}.v{family}").read_text()
    assert driver("differs", name) == []
    texts = [text for chain in driver("read")["chains"].values() for text in chain]
    golden_lines = [line for family in Family for line in saved(visited, family).splitlines() if line.startswith("-A")]
    assert sorted(texts) == sorted(golden_lines)


@pytest.mark.usefixtures("visited")
@pytest.mark.parametrize("name", EVERY_POLICY)
def test_the_bytes_are_those_of_iptables_restore(name: str, driver: Driver) -> None:
    driver("write", name)
    ours = driver("tables")
    with Netns() as other:
        for family in Family:
            iptables(
                driver, other, "--noflush", family=family, stdin=(GOLDENS / f"legacy/{name}.v{family}").read_text()
            )
        driver("enter", other.path)
        assert driver("tables") == ours
        assert driver("differs", name) == []


@pytest.mark.usefixtures("visited")
def test_ipv6_interface_names_are_compared_whole(driver: Driver) -> None:
    driver("write", "exclude_interfaces")
    layout_at = {Family.V4: (32, 64), Family.V6: (80, 112)}  # outiface and its mask in ipt_ip, ip6t_ip6
    for family in Family:
        entries = bytes.fromhex(driver("tables")[f"{family} nat"])
        name_at, mask_at = layout_at[family]
        seen = {}
        at = 0
        while at < len(entries):
            name = entries[at + name_at : at + name_at + 16].rstrip(b"\0")
            seen[name.decode()] = entries[at + mask_at : at + mask_at + 16].rstrip(b"\0")
            at += int.from_bytes(entries[at + LAYOUTS[family].offsets_at + 2 :][:2], "little")
        assert seen == {
            n: b"\xff" * (len(n) + 1) if n else b"" for n in ("", "net1", "eth0.100", "abcdefghijklmno", "lo")
        }


def test_writing_again_writes_nothing(driver: Driver, visited: Netns) -> None:
    driver("write", "dns_capture_with_exclusions")
    send(visited, Family.V4, 3)
    before = driver("tables"), legacy_save(visited)
    assert "[3:" in before[1]["iptables nat"]
    driver("write", "dns_capture_with_exclusions")
    assert (driver("tables"), legacy_save(visited)) == before


@pytest.mark.parametrize("name", ["default", "dns_capture"])
def test_only_tables_that_are_needed_are_opened(name: str, driver: Driver, visited: Netns) -> None:
    driver("write", name)
    needed = {"mangle", "nat"} | ({"raw"} if name == "dns_capture" else set())
    assert {key.split()[1] for key in legacy_save(visited)} == needed


@pytest.mark.usefixtures("visited")
def test_zones_come_and_go_with_dns_capture(driver: Driver) -> None:
    driver("write", "default", "dns_capture")
    assert {"ip/raw/NODEAGENT_OUTPUT", "ip6/raw/PREROUTING"} <= driver("read")["chains"].keys()
    driver("write", "default")
    assert not [name for name in driver("read")["chains"] if "/raw/" in name]


@pytest.mark.usefixtures("visited")
def test_stopping_keeps_tracking_and_zones(driver: Driver) -> None:
    driver("write", "dns_capture")
    before = driver("read")["chains"]
    for _ in range(2):
        driver("stop")
        after = driver("read")["chains"]
        assert after == before | {"ip/nat/NODEAGENT_OUTPUT": [], "ip6/nat/NODEAGENT_OUTPUT": []}


def test_removing_leaves_no_rule_and_again_changes_nothing(driver: Driver, visited: Netns) -> None:
    driver("write", "dns_capture")
    opened = set(legacy_save(visited))
    for _ in range(2):
        driver("remove")
        assert driver("read") == {"chains": {}, "id": None, "ahead": [], "foreign": [], "in_use": False}
        assert saved(visited, Family.V4) == saved(visited, Family.V6) == ""
    assert set(legacy_save(visited)) == opened


def test_nothing_is_written_where_nothing_was(driver: Driver, visited: Netns) -> None:
    for verb in ("read", "stop", "remove", "read"):
        driver(verb)
    assert legacy_save(visited) == {}
    assert not driver("read")["in_use"]


@pytest.mark.usefixtures("visited")
def test_no_descriptor_stays_open(driver: Driver) -> None:
    driver("write", "dns_capture")
    before = driver("descriptors")
    for _ in range(20):
        driver("write", "default", "dns_capture")
        driver("read")
        driver("stop")
        driver("remove")
    assert driver("descriptors") == before


@pytest.mark.parametrize("missing", ["xtables", "ip4tc", "ip6tc", "c"])
def test_a_library_of_another_version_is_looked_for(missing: str) -> None:
    """What iptables' next release, or another libc, brings under another name."""
    script = f"from nodeagent.legacy import encoder; encoder._SONAMES[{missing!r}] = 'libnone.so.99'; encoder.main()"
    for family in Family:
        command = [sys.executable, "-c", script, str(int(family)), DEFAULT_BPFFS]
        done = subprocess.run(
            command, input=to_json(compile_policy(POLICIES["default"])), capture_output=True, check=True
        )
        result = msgspec.msgpack.decode(done.stdout, type=Result)
        assert result.error == ""
        assert {encoded.ours.name for encoded in result.tables} == {"mangle", "nat"}


def test_this_kernel_has_the_backend(driver: Driver) -> None:
    assert driver("available") is None


# -- strangers ---------------------------------------------------------------------------------------


@pytest.mark.fault(24)
def test_strangers_rules_survive_every_change(driver: Driver, visited: Netns) -> None:
    strangers_legacy(visited)
    before = legacy_save(visited)
    for name in (*VARIETY, *VARIETY[::-1]):
        driver("write", name)
        assert driver("differs", name) == []
        assert without_ours(legacy_save(visited)) == before
    driver("stop")
    assert without_ours(legacy_save(visited)) == before
    driver("remove")
    assert legacy_save(visited) == before


def test_a_strangers_table_gets_its_bytes_back(driver: Driver, visited: Netns) -> None:
    strangers_legacy(visited)
    before = driver("tables")
    driver("write", *VARIETY)
    driver("remove")
    assert driver("tables") == before


@pytest.mark.parametrize("family", Family, ids=lambda family: f"v{family}")
def test_no_packet_goes_uncounted_while_rules_change(family: Family, driver: Driver, visited: Netns) -> None:
    strangers_legacy(visited)
    driver("write", *VARIETY)
    before = counted(visited, family)
    packets = 3000
    sender = threading.Thread(target=send, args=(visited, family, packets))
    sender.start()
    changes = 0
    while sender.is_alive():
        driver("write", *VARIETY)
        changes += 1
    sender.join()
    driver("remove")
    assert changes > 1
    assert counted(visited, family) == {table: number + packets for table, number in before.items()}


def counted(pod: Netns, family: Family) -> dict[str, int]:
    """Return what a stranger's rule counted in each table: every packet in raw and mangle, every flow in nat."""
    rules = {"raw": "-j STRANGER-RAW", "mangle": "-j STRANGER-MARK", "nat": "-j STRANGER-SERVICES"}
    save = legacy_save(pod)
    found = {}
    for table, rule in rules.items():
        line = re.search(rf"^\[(\d+):\d+\] -A OUTPUT .*{rule}$", save[f"{COMMANDS[family]} {table}"], re.MULTILINE)
        assert line
        found[table] = int(line[1])
    return found


def send(pod: Netns, family: Family, packets: int) -> None:
    """Send *packets* UDP packets within the pod, each a flow of its own, to a socket that takes them."""
    address, network = RECEIVER[family]
    local(pod, network)
    pod.attempt(["ip", "address", "add", address, "dev", "lo"])
    domain = socket.AF_INET if family is Family.V4 else socket.AF_INET6
    with pod.socket(domain, socket.SOCK_DGRAM) as receiver:
        receiver.bind((address, 0))
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        port = receiver.getsockname()[1]
        for number in range(packets):
            with pod.socket(domain, socket.SOCK_DGRAM) as sender:
                sender.bind(("", 10000 + number))
                sender.sendto(b"x", (address, port))
            receiver.recv(1)


def local(pod: Netns, network: str) -> None:
    """Make every address of *network* the pod's own."""
    pod.attempt(["ip", "route", "add", "local", network, "dev", "lo"])


@pytest.mark.parametrize(("table", "hook"), [("mangle", "OUTPUT"), ("raw", "PREROUTING"), ("mangle", "FORWARD")])
def test_a_strangers_policy_survives_where_no_rule_stands(
    table: str, hook: str, driver: Driver, visited: Netns
) -> None:
    """Nothing but the policy tells such a table from one that nobody has touched: the number of entries does not."""
    iptables(driver, visited, "-t", table, "-P", hook, "DROP")
    before = legacy_save(visited)[f"iptables {table}"]
    assert f":{hook} DROP" in before
    driver("write", "dns_capture")
    assert f":{hook} DROP" in legacy_save(visited)[f"iptables {table}"]
    driver("remove")
    assert legacy_save(visited)[f"iptables {table}"] == before


def test_a_strangers_jump_to_our_chain_is_never_deleted(driver: Driver, visited: Netns) -> None:
    driver("write", "dns_capture")
    iptables(driver, visited, "-t", "raw", "-A", "OUTPUT", "-p", "udp", "-j", "NODEAGENT_PREROUTING")
    driver("write", "dns_capture_with_exclusions")
    before = legacy_save(visited)
    assert "-A OUTPUT -p udp -j NODEAGENT_PREROUTING" in before["iptables raw"]
    for verb, *arguments in (("remove",), ("write", "default")):
        with pytest.raises(
            RefusedError, match="ip raw: a rule in OUTPUT that is not ours jumps to our chain NODEAGENT_PREROUTING"
        ):
            driver(verb, *arguments)
        assert legacy_save(visited) == before
    iptables(driver, visited, "-t", "raw", "-D", "OUTPUT", "-p", "udp", "-j", "NODEAGENT_PREROUTING")
    driver("remove")
    assert driver("read")["chains"] == {}


def test_other_proxies_are_recognised(driver: Driver, visited: Netns) -> None:
    istio_like(visited, "legacy")
    foreign = driver("read", 15001)["foreign"]
    for prefix in ("ip", "ip6"):
        assert f"Istio's chain ISTIO_OUTPUT ({prefix} nat, legacy)" in foreign
        assert f"a redirect to port 15001 from ISTIO_REDIRECT ({prefix} nat, legacy)" in foreign
    assert not [name for name in driver("read", 15002)["foreign"] if "a redirect" in name]


@pytest.mark.parametrize(
    ("table", "counts"), [("nat", True), ("mangle", True), ("raw", True), ("filter", False), ("security", False)]
)
def test_a_name_counts_where_a_redirect_can_be(table: str, counts: bool, driver: Driver, visited: Netns) -> None:  # noqa: FBT001  # a column
    iptables(driver, visited, "-t", table, "-N", "ISTIO_OUTPUT")
    seen = f"Istio's chain ISTIO_OUTPUT (ip {table}, legacy)"
    assert driver("read", 15001)["foreign"] == ([seen] if counts else [])


def test_a_redirect_that_nothing_leads_to_is_nobodys(driver: Driver, visited: Netns) -> None:
    iptables(driver, visited, "-t", "nat", "-N", "IDLE")
    iptables(driver, visited, "-t", "nat", "-A", "IDLE", "-p", "tcp", "-j", "REDIRECT", "--to-ports", "15001")
    driver("write", "default")
    assert driver("read", 15001)["foreign"] == []


# -- drift -------------------------------------------------------------------------------------------

TAMPERING: dict[str, tuple[str, ...]] = {
    "our chain is flushed": ("-t nat -F NODEAGENT_OUTPUT",),
    "the jump is deleted": ("-t nat -D OUTPUT 1",),
    "a rule is deleted": ("-t nat -D NODEAGENT_OUTPUT 2",),
    "rules are in another order": (
        "-t nat -D NODEAGENT_OUTPUT 1",
        "-t nat -A NODEAGENT_OUTPUT -o net1 -m comment --comment nodeagent:excluded_interface -j RETURN",
    ),
    "a rule is added at the end": ("-t nat -A NODEAGENT_OUTPUT -j RETURN",),
    "a rule runs ahead of ours": ("-t nat -I OUTPUT 1 -p tcp --dport 443 -j ACCEPT",),
    "a rule runs ahead of our zones": ("-t raw -I PREROUTING 1 -p udp -j ACCEPT",),
    "our chain has another name": ("-t nat -E NODEAGENT_OUTPUT RENAMED",),
    "everything in nat is gone": ("-t nat -F", "-t nat -X"),
    "the permanent rule is gone": ("-t mangle -F",),
    "the zones are gone": ("-t raw -F", "-t raw -X"),
    "the jump is there twice": ("-t nat -A OUTPUT -m comment --comment nodeagent:again -j NODEAGENT_OUTPUT",),
    "ours stands in another chain too": ("-t nat -A POSTROUTING -m comment --comment nodeagent:x -j ACCEPT",),
    "a chain of our name is added": ("-t nat -N NODEAGENT_X", "-t nat -A NODEAGENT_X -j ACCEPT"),
}


@pytest.mark.parametrize("family", Family, ids=lambda family: f"v{family}")
@pytest.mark.parametrize("case", TAMPERING)
def test_tampering_shows_and_is_undone(case: str, family: Family, driver: Driver, visited: Netns) -> None:
    driver("write", "dns_capture_with_exclusions")
    before = saved(visited, family)
    for arguments in TAMPERING[case]:
        iptables(driver, visited, *arguments.split(), family=family)
    assert driver("differs", "dns_capture_with_exclusions")
    assert driver("read", 15001)["foreign"] == []
    driver("write", "dns_capture_with_exclusions")
    assert driver("differs", "dns_capture_with_exclusions") == []
    first = [line for line in saved(visited, family).splitlines() if "nodeagent:" in line and "RENAMED" not in line]
    assert first == [line for line in before.splitlines() if "nodeagent:" in line]


def test_a_rule_ahead_of_ours_is_named(driver: Driver, visited: Netns) -> None:
    driver("write", "default")
    iptables(driver, visited, "-t", "nat", "-I", "OUTPUT", "1", "-p", "tcp", "--dport", "443", "-j", "ACCEPT")
    assert driver("read")["ahead"] == ["-A OUTPUT -p tcp -m tcp --dport 443 -j ACCEPT (ip nat, legacy)"]


def test_a_table_larger_than_anybody_needs_is_refused_by_name(driver: Driver, visited: Netns) -> None:
    """Two such tables would be our whole memory; in another namespace they stop nobody."""
    rules = "".join(f"-A OUTPUT -p tcp -m tcp --dport {n % 65536} -j ACCEPT\n" for n in range(100_000))
    iptables(driver, visited, "-T", "nat", stdin=f"*nat\n{rules}COMMIT\n")
    for verb in (("read",), ("write", "default")):
        with pytest.raises(KernelError, match=r"table ip nat holds 10000\d entries, \d+ MiB: more than 16 MiB"):
            driver(*verb)
    iptables(driver, visited, "-t", "nat", "-F")
    driver("write", "default")
    assert driver("differs", "default") == []


def test_families_that_disagree_have_no_rule_set_id(driver: Driver, visited: Netns) -> None:
    driver("write", "default")
    assert driver("read")["id"] == driver("encode", "default")
    golden = (GOLDENS / "legacy/include_nothing.v6").read_text()
    iptables(driver, visited, "-t", "nat", "-F", family=Family.V6)
    iptables(driver, visited, "-t", "nat", "-X", family=Family.V6)
    iptables(driver, visited, "--noflush", "-T", "nat", family=Family.V6, stdin=golden)
    assert driver("read")["id"] is None


# -- others at work ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("visited")
def test_a_lock_that_is_held_makes_us_give_up(driver: Driver) -> None:
    driver("write", "default")
    before = driver("tables")
    with driver.lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for verb, *arguments in (("write", "dns_capture"), ("stop",), ("remove",)):
            with pytest.raises(BusyError, match=re.escape(str(driver.lock))):
                driver(verb, *arguments)
    assert driver("tables") == before
    driver("write", "dns_capture")


def test_no_edit_of_iptables_is_lost_under_the_lock(driver: Driver, visited: Netns) -> None:
    strangers_legacy(visited)
    edits = 60
    add = "iptables-legacy -w 30 -t nat -A STRANGER-NAT -p tcp --dport $i -j RETURN"
    loop = f"for i in $(seq {edits}); do {add} || exit; done"
    outcome: list[str] = []
    editor = threading.Thread(target=lambda: outcome.append(visited.run([*beside(driver), "sh", "-c", loop])))
    editor.start()
    changes = 0
    while editor.is_alive():
        driver("write", *VARIETY)
        changes += 1
    editor.join()
    assert outcome
    assert changes > 1
    ports = re.findall(r"-A STRANGER-NAT -p tcp -m tcp --dport (\d+) -j RETURN", legacy_save(visited)["iptables nat"])
    assert [int(port) for port in ports] == list(range(1, edits + 1))
    assert driver("differs", VARIETY[-1]) == []


# -- a netns of another user namespace -------------------------------------------------------------------


@pytest.fixture
def of_another_user(driver: Driver) -> Iterator[Netns]:
    """Return a namespace in which the kernel refuses to match owners, with the driver in it."""
    with Netns(user_namespace=True) as netns:
        driver("enter", netns.path)
        yield netns


@pytest.mark.parametrize("name", ["default", "dns_capture_with_exclusions"])
@pytest.mark.parametrize("strangers", [False, True], ids=["in an empty namespace", "among strangers' rules"])
def test_a_refusal_half_way_is_taken_back(
    name: str,
    strangers: bool,  # noqa: FBT001  # a column of the table
    driver: Driver,
    of_another_user: Netns,
) -> None:
    if strangers:
        for table in TABLES:
            iptables(driver, of_another_user, "-t", table, "-A", "OUTPUT", "-d", "198.18.0.0/15", "-j", "ACCEPT")
    before = without_empty(legacy_save(of_another_user))
    with pytest.raises(KernelError, match=r"cannot replace table ip (nat|raw): .* was taken back$"):
        driver("write", name)
    assert without_empty(legacy_save(of_another_user)) == before
    assert driver("read")["chains"] == {}


@pytest.mark.usefixtures("of_another_user")
def test_a_refusal_half_way_leaves_the_rules_that_stood(driver: Driver) -> None:
    driver("write", "no_owners")
    with pytest.raises(KernelError, match=r"cannot replace table ip raw: .* no table was changed$"):
        driver("write", "dns_capture")
    assert driver("differs", "no_owners") == []


def without_empty(save: dict[str, str]) -> dict[str, str]:
    """Leave out tables without a rule: who opens one cannot close it."""
    return {key: text for key, text in save.items() if "-A " in text}


# -- many ranges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exclude_101_ranges_to_the_last_address", "scattered:10000"])
@pytest.mark.parametrize("family", Family, ids=lambda family: f"v{family}")
def test_a_map_matches_what_its_ranges_hold(name: str, family: Family, driver: Driver, visited: Netns) -> None:
    networks = policy_of(name).exclude_ranges.of(family)
    if not networks:
        networks = policy_of("scattered:10000").exclude_ranges.of(family)
        name = "scattered:10000"
    driver("write", name)
    for network in ("0.0.0.0/0", "2001:db8::/32"):
        local(visited, network)
    random = Random(7)
    asked = [number for network in random.sample(networks, 40) for number in around(network)]
    expected = 0
    domain = socket.AF_INET if family is Family.V4 else socket.AF_INET6
    for number in asked:
        address = ip_address(number.to_bytes(family.bits // 8, "big"))
        expected += any(address in network for network in networks)
        with visited.socket(domain, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.sendto(b"x", (str(address), 9))
    save = legacy_save(visited)[f"{COMMANDS[family]} nat"]
    (hits,) = re.findall(r"^\[(\d+):\d+\] -A NODEAGENT_OUTPUT -m bpf", save, re.MULTILINE)
    assert 0 < expected < len(asked)
    assert int(hits) == expected


def around(network: Network) -> Iterator[int]:
    """Yield the ends of a range, and what lies just outside."""
    first, last = int(network[0]), int(network[-1])
    top = (1 << network.max_prefixlen) - 1
    yield from (number for number in (first - 1, first, (first + last) // 2, last, last + 1) if 0 < number < top)


@pytest.mark.usefixtures("visited")
def test_a_list_of_ranges_is_pinned_once_and_shared(driver: Driver) -> None:
    driver("write", "exclude_101_ranges")
    before = driver("pins")
    with Netns() as other:
        driver("enter", other.path)
        driver("write", "exclude_101_ranges", "include_101_ranges")
        assert driver("pins") == before


@pytest.mark.usefixtures("visited")
def test_a_pinned_program_that_is_gone_is_said_to_be_gone(driver: Driver) -> None:
    with pytest.raises(KernelError, match=r"cannot replace table ip nat: .*a pinned program \(-m bpf\) is gone"):
        driver("write_stale", "exclude_101_ranges")
    assert driver("pins") == []
    driver("write", "exclude_101_ranges")
    assert driver("differs", "exclude_101_ranges") == []


def test_without_a_bpf_file_system_many_ranges_are_refused(tmp_path: Path, pod: Netns) -> None:
    with Driver(tmp_path / "lock", file_system="tmpfs") as bare:
        bare("enter", pod.path)
        with pytest.raises(KernelError, match="mount -t bpf bpf /sys/fs/bpf"):
            bare("encode", "exclude_101_ranges")
        bare("write", "exclude_100_ranges_stay_rules")
