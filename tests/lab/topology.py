"""The pod, its sidecar and an outside world that answers for every address: the `topology` of the connection cases.

    pod                                            world (no way out)
      lo    127.0.0.1 ::1 ::6
      eth0  10.244.1.5/24 fd00:244:1::5/64  ─────  world0  10.244.1.1 fd00:244:1::1   default route
      net1  192.168.77.5/24                 ─────  world1  192.168.77.1               172.16.9.9

The world takes each packet for its own (a local route, for what comes from the pod only) and hands every TCP
connection and every datagram, whatever its port, to one listener (TPROXY): there is no NAT and no connection
tracking on the way, so the world's word about addresses is the wire's.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self, TypeVar

from tests.lab.cgroups import PodCgroups
from tests.lab.client import Client, Dial
from tests.lab.load import Load, LoadPlan
from tests.lab.netns import Netns
from tests.lab.outcome import Proto, plain
from tests.lab.peers import EVERYWHERE, Event, Peer

Kept = TypeVar("Kept")

POD_ADDRESSES = ("10.244.1.5", "fd00:244:1::5", "192.168.77.5", "::6")
"""The pod's own addresses, 127.0.0.0/8 and ::1 aside."""

_TPROXY_PORT = 9000

_QUIET = {
    # Addresses usable at once, and no packet but the test's: no DAD, no router solicitation.
    **{
        f"net/ipv6/conf/{scope}/{name}": "0"
        for scope in ("all", "default")
        for name in ("disable_ipv6", "accept_dad", "dad_transmits", "accept_ra", "router_solicitations")
    },
    "net/ipv6/conf/lo/disable_ipv6": "0",
    # A namespace may inherit these from the machine.
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/ip_forward": "0",
}

_POD_SYSCTLS = {
    **_QUIET,
    "net/ipv4/ip_local_port_range": "20000 65535",  # clear of the sidecar's ports
    "net/ipv4/ip_unprivileged_port_start": "0",
    "net/ipv4/tcp_tw_reuse": "1",
}

# No ARP and permanent neighbours: the first packet waits for nobody, and as no interface joins a solicited-node group,
# no multicast report disturbs a counter.  So the subnets, too, are reached through the gateway.
_POD_LINKS = """\
link add eth0 address 02:00:00:00:01:05 type veth peer name world0 address 02:00:00:00:01:01 netns {world}
link add net1 address 02:00:00:00:02:05 type veth peer name world1 address 02:00:00:00:02:01 netns {world}
link set eth0 arp off
link set net1 arp off
addr add 10.244.1.5/24 dev eth0 noprefixroute
addr add fd00:244:1::5/64 dev eth0 nodad noprefixroute
addr add 192.168.77.5/24 dev net1 noprefixroute
addr add ::6/128 dev lo nodad
link set eth0 up
link set net1 up
neigh add 10.244.1.1 lladdr 02:00:00:00:01:01 dev eth0 nud permanent
neigh add fd00:244:1::1 lladdr 02:00:00:00:01:01 dev eth0 nud permanent
neigh add 192.168.77.1 lladdr 02:00:00:00:02:01 dev net1 nud permanent
route add 10.244.1.1/32 dev eth0 src 10.244.1.5
route add 10.244.1.0/24 via 10.244.1.1 dev eth0
route add 192.168.77.1/32 dev net1 src 192.168.77.5
route add 192.168.77.0/24 via 192.168.77.1 dev net1
route add default via 10.244.1.1 dev eth0
route add default via 192.168.77.1 dev net1 metric 1000
route add 172.16.9.9/32 via 192.168.77.1 dev net1
route add fd00:244:1::1/128 dev eth0
route add fd00:244:1::/64 via fd00:244:1::1 dev eth0
route add ::/0 via fd00:244:1::1 dev eth0
"""

_WORLD_LINKS = """\
link set world0 arp off
link set world1 arp off
addr add 10.244.1.1/24 dev world0
addr add fd00:244:1::1/64 dev world0 nodad
addr add 192.168.77.1/24 dev world1
link set world0 up
link set world1 up
neigh add 10.244.1.5 lladdr 02:00:00:00:01:05 dev world0 nud permanent
neigh add fd00:244:1::5 lladdr 02:00:00:00:01:05 dev world0 nud permanent
neigh add 192.168.77.5 lladdr 02:00:00:00:02:05 dev world1 nud permanent
route add ::6/128 via fd00:244:1::5 dev world0
rule add iif world0 lookup 100
rule add iif world1 lookup 100
route add local default dev lo table 100
route add local ::/0 dev lo table 100
"""

_WORLD_ANSWERS = f"""\
table inet world {{
    set refused {{
        type inet_proto . inet_service
    }}
    counter refusals {{
    }}
    chain answers {{
        type filter hook prerouting priority mangle
        iifname != {{ "world0", "world1" }} return
        meta l4proto tcp meta l4proto . th dport @refused counter name refusals reject with tcp reset
        meta l4proto . th dport @refused reject with icmpx port-unreachable
        meta nfproto ipv4 meta l4proto {{ tcp, udp }} tproxy ip to :{_TPROXY_PORT}
        meta nfproto ipv6 meta l4proto {{ tcp, udp }} tproxy ip6 to :{_TPROXY_PORT}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class SidecarSettings:
    """How the pod's sidecar is set up."""

    uid: int = 1337
    gid: int = 1337
    port: int = 15001
    dns_port: int = 15053
    ipv6: bool = True
    """Whether it listens on IPv6 at all."""
    passthrough: bool = False
    """Whether it passes on to the original destination, or answers itself."""


class Topology:
    """The whole of it, for as long as the `with` block lasts; nothing is left afterwards, however it ends."""

    def __init__(self, sidecar: SidecarSettings | None = None, cgroups: PodCgroups | None = None) -> None:
        """Build it, its processes in *cgroups*; a failure on the way takes down what stood already."""
        self.settings = settings = sidecar or SidecarSettings()
        self._everything = ExitStack()
        self._cgroups = cgroups
        with ExitStack() as unfinished:
            unfinished.callback(self._everything.close)
            self.pod, self.world = (self._keep(Netns(), Netns.close) for _ in range(2))
            self.outside = self._keep(Peer(self.world, "world"), Peer.close)
            self.sidecar = self._keep(Peer(self.pod, "sidecar", uid=settings.uid, gid=settings.gid), Peer.close)
            self.app = self._keep(Peer(self.pod, "app-local", uid=1000, gid=1000), Peer.close)
            if cgroups:
                for pid in (self.pod.pid, self.app.process.pid):
                    cgroups.app.join(pid)
                cgroups.sidecar.join(self.sidecar.process.pid)
            self._wire_up()
            self._listen(settings)
            unfinished.pop_all()
        self.client = Client(self.pod, prepare=self._prepare, arrived=self.find)
        """Dials from the pod."""
        self.outside_client = Client(self.world, prepare=self._prepare, arrived=self.find)
        """Dials from the world."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process and both namespaces."""
        self._everything.close()

    def refuse(self, proto: Proto, port: int) -> None:
        """From now on nobody in the world listens on *port*: TCP is reset, UDP meets an ICMP error."""
        self.world.nft(f"add element inet world refused {{ {proto} . {port} }}")

    def refusals(self) -> int:
        """Return how many TCP connections the world has refused."""
        listed = json.loads(self.world.run(["nft", "-j", "list", "counter", "inet", "world", "refusals"]))
        [packets] = [entry["counter"]["packets"] for entry in listed["nftables"] if "counter" in entry]
        return int(packets)

    def load(self, plan: LoadPlan) -> Load:
        """Return a load generator in the pod; local destinations need a listener first (`app.serve`)."""
        return Load(self.pod, plan, self._cgroups.app if self._cgroups else None)

    def events(self) -> tuple[Event, ...]:
        """Return what the sidecar, the app and the world saw, each in its own order."""
        return (*self.sidecar.events(), *self.app.events(), *self.outside.events())

    def forget(self) -> None:
        """Empty all logs."""
        for peer in (self.sidecar, self.app, self.outside):
            peer.forget()

    def find(self, token: str) -> Event | None:
        """Return what became of *token*: the event of the first peer, nearest first, that saw it."""
        return next((event for peer in (self.sidecar, self.app, self.outside) if (event := peer.find(token))), None)

    def _keep(self, thing: Kept, close: Callable[[Kept], None]) -> Kept:
        self._everything.callback(close, thing)
        return thing

    def _wire_up(self) -> None:
        self.pod.set_sysctls(_POD_SYSCTLS)
        self.world.set_sysctls(_QUIET)
        self.pod.ip(_POD_LINKS.format(world=self.world.pid))
        self.world.ip(_WORLD_LINKS)
        self.world.run(["ip", "-6", "rule", "add", "iif", "world0", "lookup", "100"])  # a batch cannot say which family
        self.world.nft(_WORLD_ANSWERS)

    def _listen(self, settings: SidecarSettings) -> None:
        for address in EVERYWHERE:
            for proto in ("tcp", "udp"):
                self.outside.listen(proto, address, _TPROXY_PORT, transparent=True)
        families = slice(None) if settings.ipv6 else slice(1)
        for address in EVERYWHERE[families]:
            self.sidecar.listen("tcp", address, settings.port)
        for address in ("127.0.0.1", "::1")[families]:
            # Not the wildcard: conntrack finds the answer of a redirected datagram by the address it was sent to.
            for proto in ("udp", "tcp"):
                self.sidecar.listen(proto, address, settings.dns_port, dns=True)
        self.sidecar.passthrough(on=settings.passthrough)

    def _prepare(self, dial: Dial) -> None:
        address = plain(dial.dst)
        if address in POD_ADDRESSES or address == "::1" or address.startswith("127."):
            self.app.serve(dial.proto, dial.port)
