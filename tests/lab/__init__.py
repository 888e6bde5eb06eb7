"""The test lab: a pod and an outside world in network namespaces of their own, with real sockets and no way out.

    from tests.lab import Dial, Topology

    with Topology() as lab:
        run_something_that_programs(lab.pod.path)          # /proc/PID/ns/net
        outcome = lab.client.connect(Dial("203.0.113.10", 443, uid=1000))
        assert outcome.verdict == "intercepted"
        assert outcome.original_destination == ("203.0.113.10", 443)

Needs root, iproute2, nft, nsenter, and iptables for `strangers`; it changes nothing outside its own namespaces, and
nothing of it outlives the `with` block or the process.  The process that uses it enters no namespace.

- `Topology(SidecarSettings(...))`: everything below, connected; `.pod`, `.world`: two `Netns`;
  `.client`, `.outside_client`: a `Client` in each; `.sidecar`, `.app`, `.outside`: the `Peer`s;
  `.load(LoadPlan(...))`; `.refuse(proto, port)`, `.refusals()`; `.events()`, `.find(token)`, `.forget()`.
- `Netns()`: one namespace; `.path`, `.pid`, `.run(argv, stdin)`, `.ip(batch)`, `.nft(ruleset)`, `.sysctl(name)`,
  `.socket(family, kind, uid=, gid=)`: a socket of that namespace and that owner, usable anywhere.
- `Client.connect(Dial(...)) -> Outcome`; `Client.resolve(name, Dial(...))`: a DNS query;
  `Client.open_connection(Dial(...)) -> Connection`, with `echo`, `hear`, `is_reset`.
- `Load(netns, LoadPlan(...))`: thousands of connections, each with its `LoadRecord` in a `LoadReport`.
- `Peer`: `.events()`, `.listen(...)`, `.hush(...)`, `.serve(proto, port)`, `.say(greeting, token)`,
  `.passthrough(on=...)`.
- `TestCgroup()`, `PodCgroups(parent, name)`: cgroups to put a topology's processes and sockets into.
- `strangers_legacy`, `strangers_nft`, `istio_like`: other people's rules; `legacy_save`, `nft_save`: snapshots.

Nothing here sleeps or guesses: a verdict is what the other end of the connection says about itself.
"""

from tests.lab.cgroups import Cgroup, PodCgroups, TestCgroup
from tests.lab.client import Client, Dial, NotConnectedError
from tests.lab.connection import Connection
from tests.lab.load import Load, LoadPlan, LoadRecord, LoadReport
from tests.lab.netns import Netns
from tests.lab.outcome import Outcome, Proto, Verdict
from tests.lab.peers import Event, Peer
from tests.lab.process import LabError
from tests.lab.strangers import Backend, istio_like, legacy_save, nft_save, strangers_legacy, strangers_nft
from tests.lab.topology import POD_ADDRESSES, SidecarSettings, Topology
from tests.lab.wire import Address, Greeting

__all__ = [
    "POD_ADDRESSES",
    "Address",
    "Backend",
    "Cgroup",
    "Client",
    "Connection",
    "Dial",
    "Event",
    "Greeting",
    "LabError",
    "Load",
    "LoadPlan",
    "LoadRecord",
    "LoadReport",
    "Netns",
    "NotConnectedError",
    "Outcome",
    "Peer",
    "PodCgroups",
    "Proto",
    "SidecarSettings",
    "TestCgroup",
    "Topology",
    "Verdict",
    "istio_like",
    "legacy_save",
    "nft_save",
    "strangers_legacy",
    "strangers_nft",
]
