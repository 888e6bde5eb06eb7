"""Rules that other tools own: to be found again, byte for byte, whatever nodeagent does beside them.

Except for `istio_like`, which redirects, they match 198.18.0.0/15 and 2001:2::/48 only (RFC 2544, RFC 5180: for
benchmarks), so they change no verdict of traffic to anywhere else.  They do count it, where they look at it.
"""

import re
from typing import Literal, TypeAlias

from tests.lab.netns import Netns

Backend: TypeAlias = Literal["legacy", "nft"]

_FAMILIES = {
    "iptables": {"net": "198.18.0.0/15", "to": "198.18.0.9", "dnat": "198.18.0.10"},
    "ip6tables": {"net": "2001:2::/48", "to": "2001:2::9", "dnat": "2001:2::10"},
}

# {net}: a network; {to}, {dnat}: addresses in it.  Counters differ, so that one in the wrong place shows.
_RULES = """\
*raw
:PREROUTING ACCEPT [11:1111]
:OUTPUT ACCEPT [12:1212]
:STRANGER-RAW - [0:0]
[3:180] -A OUTPUT -j STRANGER-RAW
[4:240] -A STRANGER-RAW -d {net} -p udp -m udp --dport 53 -j CT --zone 7
[5:300] -A STRANGER-RAW -m comment --comment "stranger's: \\"quoted\\" comment" -j RETURN
COMMIT
*mangle
:PREROUTING ACCEPT [21:2121]
:INPUT ACCEPT [22:2222]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [23:2323]
:POSTROUTING ACCEPT [24:2424]
:STRANGER-MARK - [0:0]
[6:360] -A OUTPUT -d {net} -j STRANGER-MARK
[7:420] -A STRANGER-MARK -m owner --uid-owner 4242 -j MARK --set-xmark 0x2a/0xff
[8:480] -A STRANGER-MARK -o net1 -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT [31:3131]
:INPUT ACCEPT [32:3232]
:OUTPUT ACCEPT [33:3333]
:POSTROUTING ACCEPT [34:3434]
:STRANGER-NAT - [0:0]
:STRANGER-SERVICES - [0:0]
:STRANGER-EMPTY - [0:0]
[9:540] -A OUTPUT -m comment --comment "a jump at the head" -j STRANGER-SERVICES
[10:600] -A OUTPUT -d {net} -p tcp -j STRANGER-NAT
[11:660] -A POSTROUTING -s {net} ! -o lo -j MASQUERADE
[12:720] -A STRANGER-NAT -p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 18080
[13:780] -A STRANGER-NAT -m mark --mark 0x2a/0xff -j RETURN
[14:840] -A STRANGER-SERVICES -d {to} -p tcp -m multiport --dports 80,443,8000:8100 -j DNAT --to-destination {dnat}
[15:900] -A STRANGER-SERVICES -g STRANGER-EMPTY
COMMIT
*filter
:INPUT ACCEPT [41:4141]
:FORWARD DROP [42:4242]
:OUTPUT ACCEPT [43:4343]
:STRANGER-POLICY - [0:0]
[16:960] -A OUTPUT -m conntrack --ctstate INVALID -d {net} -j DROP
[17:1020] -A OUTPUT -d {net} -j STRANGER-POLICY
[18:1080] -A STRANGER-POLICY -p tcp -m tcp --dport 25 -j REJECT --reject-with tcp-reset
COMMIT
"""

_OWN_NFT_TABLE = """\
table inet stranger {
    set ports {
        type inet_service
        flags interval
        elements = { 25, 8000-8100 }
    }
    counter seen {
        packets 77 bytes 7777
    }
    chain out {
        type filter hook output priority -150; policy accept;
        ip daddr 198.18.0.0/15 tcp dport @ports counter packets 5 bytes 300 meta mark set 0x2a comment "stranger's"
        ip6 daddr 2001:2::/48 counter name seen
        ip daddr 198.18.0.0/15 jump deeper
    }
    chain deeper {
        counter packets 6 bytes 360 return
    }
    chain redirects {
        type nat hook output priority -100; policy accept;
        ip daddr 198.18.0.9 tcp dport 80 counter packets 7 bytes 420 redirect to :18080
    }
}
"""

ISTIO = """\
*nat
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d {localhost} -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT
"""


def strangers_legacy(netns: Netns) -> None:
    """Load foreign chains, jumps and counters into raw, mangle, nat and filter of both families by iptables-legacy."""
    _load_rules(netns, "legacy")


def strangers_nft(netns: Netns) -> None:
    """Load the same rules by iptables-nft, and an nft user's own table with a set, a counter and a redirect.

    ip6tables-nft-restore 1.8.9 forgets the counters of rules: IPv6 has some in the nft user's table only.
    """
    _load_rules(netns, "nft")
    netns.nft(_OWN_NFT_TABLE)


def istio_like(netns: Netns, backend: Backend) -> None:
    """Redirect as a mesh's init container does, in both families: the least that makes it recognisable."""
    for command, localhost in (("iptables", "127.0.0.1/32"), ("ip6tables", "::1/128")):
        netns.run([f"{command}-{backend}-restore", "--noflush"], ISTIO.format(localhost=localhost))


def legacy_save(netns: Netns) -> dict[str, str]:
    """Return what iptables-legacy-save -c prints of each table in use, without its dates; it brings none into use.

    The keys are `iptables nat`, `ip6tables nat` and so on.  Two snapshots are equal if and only if the rules, their
    order and every counter are.
    """
    return _saved(netns, "legacy")


def nft_save(netns: Netns) -> dict[str, str]:
    """Return what `nft list ruleset` prints of each table, counters included, by the table's name (`ip nat`).

    And, as nft is silent about iptables' extensions, what iptables-nft-save -c prints (`iptables nat`).
    """
    text = netns.run(["nft", "list", "ruleset"])
    return dict(re.findall(r"^table (\S+ \S+) \{.*\n((?:.*\n)*?)^\}$", text, re.MULTILINE)) | _saved(netns, "nft")


def _saved(netns: Netns, backend: Backend) -> dict[str, str]:
    saved: dict[str, str] = {}
    for command in _FAMILIES:
        text = netns.run([f"{command}-{backend}-save", "-c"])
        for table, body in re.findall(r"^\*(\S+)\n(.*?)^COMMIT$", text, re.MULTILINE | re.DOTALL):
            saved[f"{command} {table}"] = body
    return saved


def _load_rules(netns: Netns, backend: Backend) -> None:
    for command, addresses in _FAMILIES.items():
        netns.run([f"{command}-{backend}-restore", "--counters"], _RULES.format(**addresses))
