"""The nft backend on a real kernel: what it writes, what it reads back, what it undoes, what it leaves alone."""

import errno
import json
import os
import pickle
import re
import socket
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nodeagent.compile import compile_policy
from nodeagent.compile.nft import lower
from nodeagent.errors import BusyError, KernelError, RefusedError
from nodeagent.model import Bypass, Hook, KernelState, Match, Policy, Program, Reading, Rule, RuleSet
from nodeagent.netlink import NLM_F_ACK, NLM_F_CREATE, NetlinkError
from nodeagent.netns.kernel import set_netns
from nodeagent.nft import NftBackend, replay, strangers
from nodeagent.nft.closer import Closer
from nodeagent.nft.expressions import redirects
from nodeagent.nft.wire import Kind, NetfilterSocket, batch, message, number_attribute, text_attribute
from tests.cases.policies import POLICIES, ranges, scattered
from tests.conftest import GOLDENS
from tests.kernel.conftest import EVERY_POLICY
from tests.lab import Netns, istio_like, nft_save, strangers_nft

pytestmark = pytest.mark.kernel

T = TypeVar("T")
LISTING = ("nft", "list", "table", "inet", "nodeagent")
SETS = "everything_at_once"


@cache
def program(name: str) -> Program:
    return NftBackend().encode(compile_policy(POLICIES[name]))


def inside(netns: Netns, work: Callable[[], T]) -> T:
    """Return what *work* returns in a forked child that has entered *netns*; raise what it raises."""
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        try:
            descriptor = os.open(netns.path, os.O_RDONLY)
            set_netns(descriptor)
            os.close(descriptor)
            answer: tuple[bool, Any] = True, work()
        except BaseException as error:  # noqa: BLE001  # whatever it is, the parent raises it
            answer = False, error
        with os.fdopen(sink, "wb") as stream:
            stream.write(pickle.dumps(answer))
        os._exit(0)
    os.close(sink)
    with os.fdopen(source, "rb") as stream:
        data = stream.read()
    os.waitpid(child, 0)
    done, value = pickle.loads(data)  # noqa: S301  # our own child wrote it
    if not done:
        raise value
    return value  # type: ignore[no-any-return]  # pickled as T


def read(netns: Netns, proxy_port: int | None = None) -> Reading:
    return inside(netns, lambda: NftBackend().read(proxy_port))


def write(netns: Netns, name: str) -> None:
    wanted = program(name)
    inside(netns, lambda: NftBackend().write(wanted, None))


def listing(netns: Netns) -> str:
    return netns.run(LISTING)


def anonymous(netns: Netns) -> str:
    """Return `nft -j list ruleset -a` without what every write changes: handles, and the letters of sets."""
    text = netns.run(["nft", "-j", "-a", "list", "ruleset"])
    return re.sub(r"((?:in|ex)clude[46]|ports\d+)_[a-z]\b", r"\1", re.sub(r'"handle": \d+', '"handle": 0', text))


# -- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_POLICY)
def test_golden_is_what_nft_lists(pod: Netns, name: str) -> None:
    write(pod, name)
    assert listing(pod) == (GOLDENS / "nft" / f"{name}.nft").read_text()


@pytest.mark.parametrize("name", EVERY_POLICY)
def test_what_is_read_back_is_what_was_promised(pod: Netns, name: str) -> None:
    write(pod, name)
    found = read(pod)
    assert found == Reading(program(name).state, program(name).ruleset_id, in_use=True)


@pytest.mark.parametrize("name", EVERY_POLICY)
def test_rules_are_read_back_in_the_words_they_were_compiled_to(name: str) -> None:
    table = lower(compile_policy(POLICIES[name]))
    for chain in table.chains:
        compiled = [" ".join(map(str, rule.statements)) for rule in table.rules if rule.chain == chain.name]
        read_back = [rule.text for rule in program(name).state.chains[f"inet/nodeagent/{chain.name}"]]
        assert read_back == [words.replace("_a ", " ") for words in compiled]


@pytest.mark.parametrize("name", ["default", SETS])
def test_writing_twice_changes_nothing(pod: Netns, name: str) -> None:
    write(pod, name)
    before, state = anonymous(pod), read(pod)
    write(pod, name)
    assert (anonymous(pod), read(pod)) == (before, state)


@pytest.mark.exhaustive
def test_every_policy_replaces_every_other(pod: Netns) -> None:
    """Chains and sets come and go; each result is what a fresh write gives."""
    for name in [*POLICIES, *reversed(POLICIES)]:
        write(pod, name)
        assert read(pod).state == program(name).state, name


def test_interval_sets_are_filled_before_the_rules_that_use_them(pod: Netns) -> None:
    """Two commits: the new sets with their elements, then the rules on them and the end of the old sets."""
    write(pod, SETS)
    wanted = program(SETS)

    def generations() -> list[int]:
        with NetfilterSocket() as netfilter:
            seen = [netfilter.generation()]
            NftBackend().write(wanted, None)
            return [*seen, netfilter.generation()]

    before, after = inside(pod, generations)
    assert after - before == 2
    assert set(re.findall(r"set \w+4_(\w)", listing(pod))) == {"b"}


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=(pytest.mark.exhaustive, pytest.mark.slow))])
def test_many_ranges(pod: Netns, count: int) -> None:
    policy = Policy(exclude_ranges=ranges(*scattered(count, "10.0.0.0/30")), include_ranges=ranges("2001:db8::/32"))
    backend = NftBackend()
    large = backend.encode(compile_policy(policy))
    inside(pod, lambda: backend.write(large, None))

    assert inside(pod, backend.read).state == large.state
    assert len(large.state.chains["inet/nodeagent/exclude4"]) == count


# -- what is undone ---------------------------------------------------------------------------------------------------

TAMPERINGS = {
    "a rule deleted": "delete rule inet nodeagent intercept handle {first}",
    "a rule inserted in the middle": "add rule inet nodeagent intercept position {first} tcp dport 443 accept",
    "a rule inserted ahead": "insert rule inet nodeagent intercept tcp dport 443 counter accept",
    "rules reordered": "delete rule inet nodeagent intercept handle {first}\n"
    "add rule inet nodeagent intercept oifname net1 return",
    "a rule weakened": "replace rule inet nodeagent intercept handle {first} oifname net1 counter return",
    "the permanent rule deleted": "flush chain inet nodeagent keep",
    "all rules flushed": "flush table inet nodeagent",
    "a set's element removed": "delete element inet nodeagent exclude4_a {{ 10.0.2.0/24 }}",
    "a set's element added": "add element inet nodeagent exclude4_a {{ 192.0.2.0/24 }}",
    "a set flushed": "flush set inet nodeagent exclude4_a",
    "a chain's policy changed": "chain inet nodeagent intercept {{ policy drop; }}",
    "a chain hooked elsewhere": "flush chain inet nodeagent intercept\ndelete chain inet nodeagent intercept\n"
    "add chain inet nodeagent intercept {{ type nat hook output priority 50; }}",
    "a chain unhooked": "flush chain inet nodeagent zone_in\ndelete chain inet nodeagent zone_in\n"
    "add chain inet nodeagent zone_in",
    "a chain deleted": "flush chain inet nodeagent zone_in\ndelete chain inet nodeagent zone_in",
    "a chain added": "add chain inet nodeagent late {{ type filter hook output priority 10; policy drop; }}",
    "a chain added and jumped to": "add chain inet nodeagent deep\nadd rule inet nodeagent deep drop\n"
    "insert rule inet nodeagent intercept jump deep",
    "a set added": "add set inet nodeagent more {{ type ipv4_addr; elements = {{ 192.0.2.1 }}; }}",
    "a set added and used": "add set inet nodeagent more {{ type inet_service; flags interval; }}\n"
    "insert rule inet nodeagent intercept tcp dport @more accept",
    "a set of ours under another letter": "add set inet nodeagent exclude4_b {{ type ipv4_addr; flags interval; }}",
    "an anonymous set used": "insert rule inet nodeagent intercept tcp dport {{ 80, 443 }} accept",
    "a verdict map added": "add chain inet nodeagent deep\n"
    "add map inet nodeagent go {{ type inet_service : verdict; elements = {{ 80 : jump deep }}; }}\n"
    "insert rule inet nodeagent intercept tcp dport vmap @go",
    "the table made dormant": "add table inet nodeagent {{ flags dormant; }}",
    "the table deleted": "delete table inet nodeagent",
}


@pytest.fixture(scope="module")
def tampered_pod() -> Iterator[Netns]:
    with Netns() as netns:
        yield netns


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampering_is_seen_and_undone(tampered_pod: Netns, tampering: str) -> None:
    pod = tampered_pod
    inside(pod, lambda: NftBackend().remove())
    write(pod, SETS)
    pristine = listing(pod)
    first = re.search(r'oifname "net1" return .*# handle (\d+)', pod.run(["nft", "-a", *LISTING[1:]]))
    assert first
    pod.nft(TAMPERINGS[tampering].format(first=first[1]))
    assert read(pod).state != program(SETS).state
    write(pod, SETS)
    assert read(pod).state == program(SETS).state
    assert re.sub(r"4_[bc]\b", "4_a", _sorted_blocks(listing(pod))) == _sorted_blocks(pristine)


def _sorted_blocks(text: str) -> str:
    """Return the listing without the order of chains: one that was made anew is listed last."""
    return "\n\n".join(
        sorted(text.removesuffix("}\n").removeprefix("table inet nodeagent {\n").strip("\n").split("\n\n"))
    )


FLOODS = {
    "rules": "".join(f"add rule inet nodeagent intercept tcp dport {n} accept\n" for n in range(1, 25_001)),
    "elements": "add element inet nodeagent exclude4_a {"
    + ", ".join(f"10.{16 + (n >> 14)}.{n >> 6 & 255}.{(n & 63) * 4}" for n in range(60_000))
    + "}",
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_table_of_ours_that_is_flooded_is_not_read_to_its_end_and_is_mended(pod: Netns, flood: str) -> None:
    """Who may change a pod's rules has neither the time nor the memory of the other pods."""
    write(pod, SETS)
    pristine = listing(pod)
    pod.nft(FLOODS[flood])
    found = read(pod)
    assert found.state
    assert [rule.text.partition(" (")[0] for rules in found.state.chains.values() for rule in rules] == [
        "a table larger than any of ours"
    ]
    assert found.ruleset_id is None
    write(pod, SETS)
    assert read(pod).state == program(SETS).state
    assert re.sub(r"4_[bc]\b", "4_a", _sorted_blocks(listing(pod))) == _sorted_blocks(pristine)


def test_more_chains_than_anybody_needs_are_refused_by_name(pod: Netns) -> None:
    write(pod, "default")
    pod.nft("table ip big {\n" + "".join(f"chain c{n} {{}}\n" for n in range(60_000)) + "}")
    with pytest.raises(KernelError, match=r"GETCHAIN: more than 1024 KiB.*are that many .* needed\?"):
        read(pod)
    pod.nft("delete table ip big")
    assert read(pod).state == program("default").state


def test_a_chain_made_anew_never_leaves_tracking_without_a_hook(pod: Netns) -> None:
    write(pod, "default")
    pod.nft("flush chain inet nodeagent keep\ndelete chain inet nodeagent keep\nadd chain inet nodeagent keep")
    write(pod, "default")
    assert read(pod).state == program("default").state


def test_comments_decide_nothing_but_the_id(pod: Netns) -> None:
    """A stripped comment touches no packet; another rule set's ID is a difference."""
    write(pod, "default")
    handle = re.search(r'oifname "lo" return .*# handle (\d+)', pod.run(["nft", "-a", *LISTING[1:]]))
    assert handle
    pod.nft(f'replace rule inet nodeagent intercept handle {handle[1]} oifname "lo" return')
    assert read(pod).state == program("default").state
    pod.nft(
        'add rule inet nodeagent intercept oifname "net7" return comment "nodeagent:0123456789abcdef:x"\n'
        f'replace rule inet nodeagent intercept handle {handle[1]} oifname "lo" return'
    )
    found = read(pod)
    assert found.ruleset_id is None
    assert found.state
    names = [rule.text for rule in found.state.chains["inet/nodeagent/intercept#"]]
    assert names[1:] == sorted(f"rule set {i}" for i in ("0123456789abcdef", program("default").ruleset_id))


def test_orphan_sets_of_a_killed_write_are_seen_and_removed(pod: Netns) -> None:
    """Killed after the first phase, over and over: letters do not run out."""
    write(pod, SETS)
    encoded = replay.Encoded.unpack(program(SETS).payload)
    for letter in "bcdefghijklmnopqrstuvwxy":
        inside(pod, lambda letter=letter: _commit(encoded.table + encoded.sets.under(letter)))  # type: ignore[misc]  # bound now
    assert read(pod).state != program(SETS).state
    write(pod, SETS)
    assert read(pod).state == program(SETS).state
    assert set(re.findall(r"set \w+4_(\w)", listing(pod))) == {"z"}


def test_an_orphan_set_in_a_fresh_pod_is_removed(pod: Netns) -> None:
    encoded = replay.Encoded.unpack(program(SETS).payload)
    inside(pod, lambda: _commit(encoded.table + encoded.sets.under("a")))
    assert read(pod).ruleset_id is None
    write(pod, "default")
    assert read(pod).state == program("default").state


def _commit(messages: bytes) -> None:
    with NetfilterSocket() as netfilter:
        netfilter.commit(batch(messages))


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_refused_rule_set_is_named_with_its_rule() -> None:
    rules = (Rule(Match(out_interface="x" * 30), Bypass(), "too long"),)
    good = compile_policy(Policy())
    with pytest.raises(KernelError, match=r'rule 1 \(oifname "x+" return comment'):
        NftBackend().encode(RuleSet(good.id, ((Hook.REDIRECT, rules),)))


def test_a_refused_second_phase_leaves_the_old_rules_and_no_sets(pod: Netns) -> None:
    write(pod, "default")
    before = listing(pod)
    with pytest.raises(KernelError):
        inside(pod, lambda: _write_broken(program(SETS)))
    assert listing(pod) == before


def test_a_refused_first_write_leaves_nothing(pod: Netns) -> None:
    with pytest.raises(KernelError):
        inside(pod, lambda: _write_broken(program(SETS)))
    assert read(pod) == Reading()


def _write_broken(wanted: Program) -> None:
    """Write *wanted* with rules that look into a set that is not there."""
    good = replay.Encoded.unpack(wanted.payload)
    rules = replay.Lettered(good.rules.messages.replace(b"exclude4_a\0", b"exclude5_a\0"), good.rules.offsets)
    broken = replay.Encoded(good.table, good.set_names, good.sets, good.chains, rules)
    NftBackend().write(Program(wanted.ruleset_id, wanted.backend, wanted.state, broken.pack()), None)


def test_a_commit_in_between_is_noticed_and_tried_again(pod: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody commits between our look and our commit, first once, then always."""
    look = replay.look
    rivals = iter(range(1, 100))

    def look_then_lose(netfilter: NetfilterSocket) -> replay.Standing:
        standing = look(netfilter)
        if next(rivals) <= limit:
            rival = text_attribute(1, f"rival{standing.generation}")
            _commit(message(Kind.NEWTABLE, rival, NLM_F_ACK | NLM_F_CREATE))
        return standing

    monkeypatch.setattr(replay, "look", look_then_lose)
    limit = 1
    write(pod, SETS)
    assert read(pod).state == program(SETS).state
    limit = 1000
    with pytest.raises(BusyError, match="somebody else"):
        write(pod, "default")
    assert read(pod).state == program(SETS).state


def test_another_process_s_table_is_refused_with_a_reason(pod: Netns) -> None:
    """A table that belongs to a socket (Linux 5.12) cannot be changed by anybody else."""

    def attempt() -> bool:
        with NetfilterSocket() as owner:
            try:
                owned = text_attribute(1, "nodeagent") + number_attribute(2, 2)  # NFT_TABLE_F_OWNER
                owner.commit(batch(message(Kind.NEWTABLE, owned, NLM_F_ACK | NLM_F_CREATE)))
            except NetlinkError as error:  # before 5.12 there are no such tables
                assert error.errno == errno.EINVAL  # noqa: PT017  # the other outcome is the test
                return False
            backend = NftBackend()
            for change in (partial(backend.write, wanted, None), backend.stop, backend.remove, ready):
                with pytest.raises(
                    RefusedError, match=rf"another process alone .*port {os.getpid()}, .*end that process"
                ):
                    change()
            return True

    def ready() -> None:
        with NftBackend().ready_to_remove():
            pytest.fail("it cannot be removed")

    wanted = program("default")
    assert inside(pod, attempt) or os.uname().release.startswith("5.10.")


# -- what is left alone -----------------------------------------------------------------------------------------------


@pytest.mark.fault(24)
def test_strangers_tables_survive_byte_for_byte(pod: Netns) -> None:
    strangers_nft(pod)
    before = nft_save(pod)
    for name in ("default", SETS, "dns_capture"):
        write(pod, name)
        assert {table: body for table, body in nft_save(pod).items() if table != "inet nodeagent"} == before
    inside(pod, lambda: NftBackend().stop())
    inside(pod, lambda: NftBackend().remove())
    assert nft_save(pod) == before


def test_reading_an_empty_netns_makes_nothing(pod: Netns) -> None:
    assert read(pod, 15001) == Reading()
    assert pod.run(["nft", "list", "ruleset"]) == ""
    tables = pod.attempt(["cat", "/proc/self/net/ip_tables_names"])  # or no such file: no module
    assert tables.stdout == ""


def test_strangers_do_not_change_our_state(pod: Netns) -> None:
    write(pod, "default")
    strangers_nft(pod)
    found = read(pod, 15001)
    assert found == Reading(program("default").state, program("default").ruleset_id, in_use=True)


def test_strangers_alone_are_in_use_and_not_ours(pod: Netns) -> None:
    strangers_nft(pod)
    assert read(pod, 15001) == Reading(in_use=True)


# -- who else is there ------------------------------------------------------------------------------------------------


def test_another_proxy_s_chains_are_foreign(pod: Netns) -> None:
    istio_like(pod, "nft")
    expected = (
        "Istio's chain ISTIO_OUTPUT (ip nat, nft)",
        "Istio's chain ISTIO_REDIRECT (ip nat, nft)",
        "Istio's chain ISTIO_OUTPUT (ip6 nat, nft)",
        "Istio's chain ISTIO_REDIRECT (ip6 nat, nft)",
    )
    assert read(pod).foreign == expected
    redirects = tuple(f"a redirect to port 15001 from OUTPUT ({family} nat, nft)" for family in ("ip", "ip6"))
    assert read(pod, 15001).foreign == expected + redirects
    assert read(pod, 15002).foreign == expected


@pytest.mark.parametrize(
    ("ruleset", "seen"),
    [
        ("table inet istio-proxy-nat { chain istio-output {}; }", "Istio's table istio-proxy-nat (inet, nft)"),
        ("table inet other { chain ISTIO_OUTPUT {}; }", "Istio's chain ISTIO_OUTPUT (inet other, nft)"),
        ("table inet filter { chain KUMA_X {}; }", "Kuma's chain KUMA_X (inet filter, nft)"),
        ("table ip raw { chain PROXY_INIT_X {}; }", "Linkerd's chain PROXY_INIT_X (ip raw, nft)"),
        ("table ip6 mangle { chain CONSUL_X {}; }", "Consul's chain CONSUL_X (ip6 mangle, nft)"),
        ("table ip filter { chain ISTIO_INPUT {}; }", None),
        ("table ip6 security { chain ISTIO_INPUT {}; }", None),
        ("table netdev other { chain ISTIO_OUTPUT {}; }", None),
        ("table netdev istio-proxy-nat { chain x {}; }", None),
        ("table arp nat { chain ISTIO_OUTPUT {}; }", None),
        ("table bridge nat { chain ISTIO_OUTPUT {}; }", None),
        ("table inet other { chain MY_ISTIO_OUTPUT {}; }", None),
    ],
)
def test_a_name_counts_where_a_redirect_can_be(pod: Netns, ruleset: str, seen: str | None) -> None:
    pod.nft(ruleset)
    assert read(pod, 15001).foreign == ((seen,) if seen else ())


@pytest.mark.parametrize(
    ("rule", "is_foreign"),
    [
        ("tcp dport 80 redirect to :15001", True),
        ("meta l4proto tcp redirect to :15000-15002", True),
        ("meta l4proto tcp dnat ip to 127.0.0.1:15001", True),
        ("tcp dport 15000 redirect to :15001-15002", True),
        ("meta l4proto tcp dnat ip to 127.0.0.1:15001-15003", True),
        ("tcp dport 80 redirect to :15002", False),
        ("tcp dport 15001 redirect to :15002", False),
        ("tcp dport 10000-20000 dnat ip to 192.0.2.1:80-90", False),
        ("tcp dport 80 dnat ip to 58.153.58.153", False),  # an address of the port's bytes
        ("tcp dport 80 redirect to tcp dport map { 80 : 15002 }", False),
        ("meta l4proto tcp redirect", False),
        ("tcp dport 15001 accept", False),
        ("tcp dport 80 counter jump deep", True),
        ("tcp dport 80 goto deep", True),
    ],
)
def test_a_redirect_to_the_sidecar_is_foreign_whoever_made_it(pod: Netns, rule: str, is_foreign: bool) -> None:  # noqa: FBT001  # a column
    pod.nft(
        "table inet other {\n chain deeper { meta l4proto tcp redirect to :15001; }\n chain deep { jump deeper; }\n"
        f" chain out {{ type nat hook output priority -100; {rule}; }}\n}}"
    )
    assert read(pod, 15001).foreign == ("a redirect to port 15001 from out (inet other, nft)",) * is_foreign


@pytest.mark.parametrize("tool", ["iptables-nft", "ip6tables-nft"])
@pytest.mark.parametrize("target", ["REDIRECT --to-ports 15001", "DNAT --to-destination {loopback}:15001"])
def test_iptables_nft_s_redirects_are_read(pod: Netns, tool: str, target: str) -> None:
    loopback = "127.0.0.1" if tool == "iptables-nft" else "[::1]"
    rule = target.format(loopback=loopback).split()
    pod.run([tool, "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", *rule])
    family = "ip" if tool == "iptables-nft" else "ip6"
    assert read(pod, 15001).foreign == (f"a redirect to port 15001 from OUTPUT ({family} nat, nft)",)
    assert read(pod, 15002).foreign == ()


def test_a_redirect_at_another_hook_is_not_foreign(pod: Netns) -> None:
    pod.nft(
        "table inet other {\n"
        " chain in { type nat hook prerouting priority -100; meta l4proto tcp redirect to :15001; }\n"
        " chain unreachable { meta l4proto tcp redirect to :15001; }\n"
        " chain out { type nat hook output priority -100; }\n"
        "}"
    )
    assert read(pod, 15001).foreign == ()


@pytest.mark.parametrize("family", ["ip", "ip6", "inet"])
@pytest.mark.parametrize(
    ("priority", "rules", "is_ahead"), [(-199, 2, True), (-101, 1, True), (-100, 1, False), (-199, 0, False)]
)
def test_rules_that_run_before_ours_are_ahead(
    pod: Netns,
    family: str,
    priority: int,
    rules: int,
    is_ahead: bool,  # noqa: FBT001  # a column of the table
) -> None:
    write(pod, "default")
    body = "tcp dport 80 accept; " * rules
    pod.nft(f"table {family} early {{\n chain out {{ type nat hook output priority {priority}; {body} }}\n}}")
    text = f"out ({family} early, nft) at priority {priority}, {rules} rule{'s' * (rules > 1)}"
    assert read(pod).ahead == (text,) * is_ahead


# -- how much is looked at --------------------------------------------------------------------------------------------

MANY = 5_000


def many(rule: str, last: str = "accept", number: int = MANY, priority: int = -100) -> str:
    """Return a nat table with *number* rules at the output hook, and a redirect that *last* may lead to."""
    rules = "\n".join(f"ip daddr 10.0.{i >> 8}.{i & 255} {rule}" for i in range(number - 1))
    return (
        "table ip big {\n"
        "chain deep {}\n"
        "chain redirects { tcp dport 1 redirect to :15001; }\n"
        "chain unseen { goto redirects; }\n"
        f"chain out {{ type nat hook output priority {priority};\n{rules}\n{last}\n}}\n"
        "}"
    )


@pytest.mark.parametrize("last", ["accept", "goto unseen"])
@pytest.mark.parametrize(
    "rule",
    [
        "tcp dport 80 accept",
        "tcp dport 15001 dnat to 192.0.2.1:8080",
        "tcp dport 15001 redirect to :8080",
        "tcp dport 80 redirect to :8080-9090",
        "tcp dport 80 dnat to 58.153.58.153",
        "tcp dport 80 jump deep",
    ],
)
def test_of_many_rules_few_are_parsed(pod: Netns, rule: str, last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of these, the one that redirects to the port in question; it counts if the very last rule leads there."""
    pod.nft(many(rule, last))
    parsed: list[bytes] = []
    real = redirects

    def counted(raw: bytes, family: int) -> Iterator[tuple[int, int]]:
        parsed.append(raw)
        return real(raw, family)

    monkeypatch.setattr(strangers, "redirects", counted)
    found, number = inside(pod, lambda: (NftBackend().read(15001), len(parsed)))
    assert found.foreign == ("a redirect to port 15001 from out (ip big, nft)",) * (last != "accept")
    assert number == 1


TOO_MUCH = "a redirect to port 15001 that too much may lead to (table ip big, nft)"


@pytest.mark.parametrize(
    ("limit", "rule", "says"),
    [
        pytest.param(
            "PARSED",
            "tcp dport 80 redirect to :15001",
            "a redirect to port 15001 from out (ip big, nft)",
            id="many redirects to the port: the first is enough",
        ),
        pytest.param(
            "PARSED",
            "tcp dport 80 dnat to 192.0.2.1:8080-18080",
            "a redirect to port 15001 from out (ip big, nft)",
            id="many ranges of ports with it: the first is enough",
        ),
        pytest.param("PARSED", "tcp dport 80 dnat to 192.0.2.1:8080", None, id="many redirects to another port"),
        pytest.param("RULES", "accept", TOO_MUCH, id="more rules than are looked at, and a redirect among the first"),
        pytest.param("RULES", "jump deep", TOO_MUCH, id="more jumps than are looked at"),
    ],
)
def test_what_is_too_much_is_said(
    pod: Netns, limit: str, rule: str, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod.nft(many(rule, number=1000))
    monkeypatch.setattr(strangers, limit, 100)
    assert read(pod, 15001).foreign == ((says,) if says else ())


def test_rules_that_are_not_looked_at_are_not_taken_for_none(pod: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    pod.run(["iptables-nft-restore"], _dnats(300))
    assert read(pod, 15001).foreign == ()
    monkeypatch.setattr(strangers, "PARSED", 100)
    seen = "more than 100 rules that may redirect to port 15001 (table ip nat, nft)"
    assert read(pod, 15001).foreign == (seen,)
    monkeypatch.undo()
    monkeypatch.setattr(strangers, "RULES", 100)
    seen = "more than 100 rules, too many to see whether one redirects to port 15001 (table ip nat, nft)"
    assert read(pod, 15001).foreign == (seen,)


def _dnats(number: int) -> str:
    rule = "-A OUTPUT -p tcp -j DNAT --to-destination 192.0.2.1:8080"
    return "\n".join(("*nat", *[rule] * number, "COMMIT", ""))


def test_many_rules_ahead_are_counted(pod: Netns) -> None:
    pod.nft(many("accept", priority=-150))
    assert read(pod).ahead == (f"out (ip big, nft) at priority -150, {MANY} rules",)


# -- the end ----------------------------------------------------------------------------------------------------------


def test_stop_empties_the_redirecting_chain_only(pod: Netns) -> None:
    write(pod, "dns_capture")
    for _ in range(2):
        inside(pod, lambda: NftBackend().stop())
        state = read(pod).state
        assert _without(state, "inet/nodeagent/intercept") == _without(
            program("dns_capture").state, "inet/nodeagent/intercept"
        )
        assert state
        assert state.chains["inet/nodeagent/intercept"] == ()
        assert read(pod).ruleset_id is None
    write(pod, "dns_capture")
    assert read(pod).state == program("dns_capture").state


def _without(state: KernelState | None, chain: str) -> dict[str, object]:
    assert state
    return {name: rules for name, rules in state.chains.items() if name.rstrip("#") != chain}


def test_stop_and_remove_where_nothing_stands(pod: Netns) -> None:
    for _ in range(2):
        inside(pod, lambda: NftBackend().stop())
        inside(pod, lambda: NftBackend().remove())
    assert pod.run(["nft", "list", "ruleset"]) == ""


def test_remove_leaves_nothing_of_ours(pod: Netns) -> None:
    write(pod, SETS)
    inside(pod, lambda: NftBackend().remove())
    assert read(pod) == Reading()


def test_available() -> None:
    with Netns() as netns:
        assert inside(netns, lambda: NftBackend().available()) is None
        assert "CAP_NET_ADMIN" in (inside(netns, _as_nobody) or "")


def _as_nobody() -> str | None:
    os.setuid(65534)
    return NftBackend().available()


def test_no_descriptor_is_left_open(pod: Netns) -> None:
    wanted = program(SETS)

    def descriptors_after_many() -> tuple[int, int]:
        before = _descriptors()
        for _ in range(20):
            NftBackend().write(wanted, NftBackend().read(15001).state)
            NftBackend().stop()
            NftBackend().remove()
        return before, _descriptors()

    before, after = inside(pod, descriptors_after_many)
    assert before == after


def test_a_closer_closes_every_socket(pod: Netns) -> None:
    """They are closed by a thread, in order: once the last one has been, all have."""

    def descriptors_after_many() -> tuple[int, int]:
        closer = Closer()
        backend = NftBackend(closer)
        before = _descriptors()
        for _ in range(20):
            backend.write(wanted, backend.read().state)
            backend.remove()
        ours, theirs = socket.socketpair()
        closer(theirs)
        ours.recv(1)  # returns when the other end has been closed
        ours.close()
        return before, _descriptors()

    wanted = program("default")
    before, after = inside(pod, descriptors_after_many)
    assert before == after


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nft_accepts_what_it_lists(pod: Netns) -> None:
    """No chain of ours has a keyword for a name."""
    write(pod, SETS)
    text = listing(pod)
    inside(pod, lambda: NftBackend().remove())
    pod.nft(text)
    assert listing(pod) == text
    assert json.loads(pod.run(["nft", "-j", "list", "ruleset"]))["nftables"]
