"""The interesting policies: the goldens of both backends show what each one compiles to.

The key is the golden's file name, and reads as the case.  Add a policy here, run
``make goldens``, read the diff.
"""

from ipaddress import ip_network
from typing import Final

from nodeagent.model import Ipv6Mode, Policy, PortRange, Ports, Ranges, Sourced

EVERY: Final = Sourced("*", "case")


def ranges(*networks: str) -> Ranges:
    """Return these networks, sorted and free of duplicates, as the parser would."""
    parsed = {ip_network(network) for network in networks}
    ordered = sorted(parsed, key=lambda n: (n.version, n.network_address, n.prefixlen))
    return Ranges(tuple(Sourced(network, "case") for network in ordered))


def ports(*items: int | tuple[int, int]) -> Ports:
    """Return these ports and port ranges, sorted, as the parser would."""
    pairs = {(item, item) if isinstance(item, int) else item for item in items}
    return Ports(tuple(Sourced(PortRange(*pair), "case") for pair in sorted(pairs)))


def interfaces(*names: str) -> tuple[Sourced[str], ...]:
    """Return these interface names as the parser would."""
    return tuple(Sourced(name, "case") for name in names)


def scattered(count: int, first: str = "10.0.0.0/24") -> tuple[str, ...]:
    """Return *count* ranges that do not touch, so that nothing collapses: every other one.

    >>> scattered(2)
    ('10.0.0.0/24', '10.0.2.0/24')
    """
    start = ip_network(first)
    base, step = int(start.network_address), 2 * start.num_addresses
    family = type(start)
    return tuple(str(family((base + i * step, start.prefixlen))) for i in range(count))


POLICIES: Final[dict[str, Policy]] = {
    "default": Policy(),
    "include_nothing": Policy(include_ranges=Ranges()),
    "include_ipv4_only": Policy(include_ranges=ranges("10.0.0.0/8", "172.16.0.0/12")),
    "include_both_families": Policy(include_ranges=ranges("10.0.0.0/8", "fd00:10::/32")),
    "exclude_both_families": Policy(
        exclude_ranges=ranges("10.96.0.0/12", "192.0.2.7/32", "2001:db8::/32", "2001:db8:1::1/128"),
    ),
    "exclude_adjacent_ranges_collapse": Policy(
        exclude_ranges=ranges("10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "2001:db8::/33", "2001:db8:8000::/33"),
    ),
    "exclude_every_address": Policy(exclude_ranges=ranges("0.0.0.0/0", "::/0")),
    "exclude_many_ports": Policy(exclude_ports=ports(*range(1001, 1035, 2))),
    "exclude_port_ranges": Policy(exclude_ports=ports(22, (7000, 7100), (30000, 32767), 65535)),
    "exclude_port_zero": Policy(exclude_ports=ports(0)),
    "exclude_dns_port": Policy(dns_capture=True, exclude_ports=ports(53)),
    "exclude_interfaces": Policy(exclude_interfaces=interfaces("net1", "eth0.100", "abcdefghijklmno")),
    "include_ports_only": Policy(include_ranges=Ranges(), include_ports=ports(80, 443, (8000, 8100))),
    "include_ports_and_ranges": Policy(
        include_ranges=ranges("203.0.113.0/24", "2001:db8:9::/48"), include_ports=ports(443)
    ),
    "dns_capture": Policy(dns_capture=True),
    "dns_capture_with_exclusions": Policy(
        dns_capture=True,
        exclude_ranges=ranges("10.0.0.53/32", "2001:db8::53/128"),
        exclude_interfaces=interfaces("net1"),
        exclude_ports=ports(22),
    ),
    "dns_capture_ipv6_bypass": Policy(
        dns_capture=True, ipv6=Ipv6Mode.BYPASS, exclude_ranges=ranges("10.0.0.53/32", "2001:db8::53/128")
    ),
    "many_owners": Policy(proxy_uids=(0, 1337, 2102, 4294967294), proxy_gids=(1337, 65534)),
    "no_owners": Policy(proxy_uids=(), proxy_gids=()),
    "other_proxy_port": Policy(proxy_port=4140, dns_capture=True, dns_port=4153),
    "loopback_range_named": Policy(include_ranges=ranges("127.1.0.0/16", "::1/128", "10.0.0.0/8")),
    "ipv6_bypass": Policy(ipv6=Ipv6Mode.BYPASS, include_ports=ports(443)),
    "ipv6_bypass_with_ranges": Policy(
        ipv6=Ipv6Mode.BYPASS,
        include_ranges=ranges("10.0.0.0/8", "2001:db8::/32"),
        exclude_ranges=ranges("10.1.0.0/16", "2001:db8:1::/48"),
    ),
    "exclude_100_ranges_stay_rules": Policy(exclude_ranges=ranges(*scattered(100))),
    "exclude_101_ranges": Policy(exclude_ranges=ranges(*scattered(101))),
    "include_101_ranges": Policy(include_ranges=ranges(*scattered(101))),
    "exclude_101_ranges_of_each_family": Policy(
        exclude_ranges=ranges(*scattered(101), *scattered(101, "2001:db8::/64")),
    ),
    "exclude_101_ranges_to_the_last_address": Policy(
        exclude_ranges=ranges("0.0.0.0/8", *scattered(101), "255.255.255.255/32"),
    ),
    "exclude_101_ports": Policy(exclude_ports=ports(*range(2001, 2203, 2))),
    "everything_at_once": Policy(
        include_ranges=ranges(*scattered(101, "172.16.0.0/28"), "127.9.0.1/32", "2001:db8:2::/48"),
        exclude_ranges=ranges(*scattered(101), "2001:db8:1::/48"),
        include_ports=ports(443, (8000, 8100)),
        exclude_ports=ports(22, (7000, 7100), 65535),
        exclude_interfaces=interfaces("net1", "net2"),
        proxy_port=15101,
        proxy_uids=(1337, 1338),
        proxy_gids=(1337,),
        dns_capture=True,
        dns_port=15153,
    ),
}
