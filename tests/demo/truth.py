"""Second act: the agent runs on a directory of Pod manifests, and its ledger tells what the pod did."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from nodeagent.cli.output import print_table
from tests.demo.kept import keep
from tests.demo.stage import Row, nodeagent, say, show
from tests.lab import Dial, PodCgroups, TestCgroup, Topology
from tests.lab.agent import RunningAgent
from tests.lab.envoy import RunningEnvoy
from tests.lab.process import LabError

UID = "4c1f9d0e-7b6a-4f5e-9d3c-2a1b0c9d8e7f"
MANIFEST = """\
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  uid: {uid}
  annotations:
    nodeagent.io/netns: {netns}
    traffic.sidecar.istio.io/excludeOutboundIPRanges: 198.51.100.0/24, 2001:db8:5::/48
    nodeagent.io/dnsCapture: "true"
status:
  podIPs: [{{ip: 10.244.1.5}}, {{ip: "fd00:244:1::5"}}]
  containerStatuses:
  - {{name: app, containerID: "containerd://app"}}
  - {{name: istio-proxy, containerID: "containerd://sidecar"}}
"""


class Booked(NamedTuple):
    """What makes a line of the ledger: who dialled whom, what happened, and why."""

    container: str
    address: str
    port: int
    protocol: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class Step:
    """Some connections of the pod, in words, as they are dialled, and what the ledger should say of them."""

    what: str
    dial: Dial
    verdict: str
    reason: str
    times: int = 1

    @property
    def booked(self) -> Booked:
        """The line of the ledger that it belongs to."""
        container = "istio-proxy" if self.verdict == "proxy" else "app"
        return Booked(container, self.dial.dst, self.dial.port, self.dial.proto, self.verdict, self.reason)


OLD = Step("older than the rules, and than counting", Dial("203.0.113.9", 9999), "bypassed", "preexisting", 0)
STEPS = (
    Step("HTTPS to the outside", Dial("203.0.113.10", 443), "intercepted", "included", 3),
    Step("the same over IPv6", Dial("2001:db8::10", 443), "intercepted", "included", 2),
    Step("DNS, captured", Dial("10.96.0.10", 53, "udp"), "intercepted", "dns_capture"),
    Step("an excluded range", Dial("198.51.100.20", 443), "bypassed", "excluded_cidr", 2),
    Step("an excluded IPv6 range", Dial("2001:db8:5::1", 443), "bypassed", "excluded_cidr"),
    Step("QUIC: UDP passes the sidecar by", Dial("203.0.113.10", 443, "udp"), "bypassed", "non_tcp"),
    Step(
        "an app that runs as the proxy's uid",
        Dial("203.0.113.11", 443, uid=1337),
        "bypassed",
        "impersonated_proxy",
    ),
)
UPSTREAM = tuple(
    Step("Envoy's own upstream leg of it", step.dial, "proxy", "proxy", step.times)
    for step in STEPS
    if step.reason == "included"
)
"""What Envoy dials for those that reach it; nobody else tells it to."""

LEAK = Step("after somebody flushed the rules", Dial("203.0.113.12", 443), "bypassed", "rules_missing", 2)


def play(scratch: Path, backend: str, place: str, *, stay: bool = False) -> list[Row]:
    """Show the act, with the page at *place*; return all rows that it showed.  With *stay*, go on until Ctrl-C."""
    say("Second act: the truth.  A fresh pod, with cgroups as a kubelet makes them; a connection is open already.")
    say("Its sidecar is a real Envoy.")
    with TestCgroup() as root:
        cgroups = PodCgroups(root.child("kubepods"), UID)
        with (
            Topology(cgroups=cgroups) as lab,
            RunningEnvoy(lab, cgroups.sidecar, scratch) as envoy,
            _agent(scratch, root, backend, place) as agent,
            lab.client.open_connection(replace(OLD.dial, cgroup=str(cgroups.app.path))) as old,
        ):
            rows = _show(agent, lab, cgroups, old.echo)
            rows += _beside(agent, envoy)
            if stay:
                keep(agent, lambda: _talk(lab, cgroups))
            _leave(agent, lab)
            return rows


@contextmanager
def _agent(scratch: Path, root: TestCgroup, backend: str, place: str) -> Iterator[RunningAgent]:
    programs = scratch / "programs"
    programs.mkdir(mode=0o700)
    agent = RunningAgent(scratch / "agent", root.path, programs)
    agent.page_at = place
    agent.configure(f"backend: {backend}\n")
    try:
        yield agent
    finally:
        agent.kill()


def _show(agent: RunningAgent, lab: Topology, cgroups: PodCgroups, use_old: Callable[[], object]) -> list[Row]:
    text = MANIFEST.format(uid=UID, netns=lab.pod.path)
    print(text)
    say("$ nodeagent run --pods-dir pods --config config.yaml")
    agent.write("web.yaml", text)
    agent.start()
    agent.settle()
    agent.wait(lambda: agent.pod("web")["counted_by"])
    say("It programmed the pod and counts.  Now the pod talks:")
    use_old()
    _talk(lab, cgroups)

    say("The agent is held up (SIGSTOP), and somebody flushes the pod's rules: what leaves now, leaks.")
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        _flush(lab)
        _dial(lab, cgroups, LEAK)
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    agent.wait(lambda: agent.pod("web")["repairs"] and agent.is_settled())
    say("It goes on, and repairs them.\n")
    rows = _compare(agent)
    show(rows)
    at = ("--api", agent.api_at)
    nodeagent("flows", "--sort", "reason", *at, shown="flows --sort reason")
    nodeagent("status", *at, shown="status", may_end_with=1)
    return rows


def _beside(agent: RunningAgent, envoy: RunningEnvoy) -> list[Row]:
    """Show Envoy's counts beside ours: the same where it sees anything, and nothing of the rest."""
    counted = envoy.settle()
    ours: Counter[str] = Counter()
    for booked, (connections, _) in _ledger(agent):
        if booked.protocol == "tcp":
            ours[booked.verdict] += connections
    rows: list[Row] = [
        ("taken by its listeners", "downstream_cx_total", str(ours["intercepted"]), str(counted.accepted), "the same"),
        ("dialled by it", "upstream_cx_total", str(ours["proxy"]), str(counted.upstream), "the same"),
    ]
    unseen: Row = ("past it", "no counter of Envoy's", str(ours["bypassed"]), "-", "and UDP: Envoy never saw it")
    say("And Envoy, what did it count?  TCP connections, ours and its own side by side:")
    print_table([*rows, unseen], ("connections", "Envoy's counter", "our ledger", "Envoy", ""))
    print()
    return rows


def _leave(agent: RunningAgent, lab: Topology) -> None:
    agent.stop()
    nodeagent("uninstall", *agent.places, "--proc", str(_processes(agent.folder, lab)), shown="uninstall")


def _processes(folder: Path, lab: Topology) -> Path:
    """Make a /proc for `uninstall` that holds the pod alone: other pods of this machine are none of the demo's."""
    proc = folder / "proc"
    proc.mkdir()
    (proc / str(lab.pod.pid)).symlink_to(f"/proc/{lab.pod.pid}")
    return proc


def _talk(lab: Topology, cgroups: PodCgroups) -> None:
    for step in STEPS:
        _dial(lab, cgroups, step)


def _dial(lab: Topology, cgroups: PodCgroups, step: Step) -> None:
    for _ in range(step.times):
        lab.client.connect(replace(step.dial, cgroup=str(cgroups.app.path)))


def _flush(lab: Topology) -> None:
    lab.pod.nft("flush ruleset")
    for command in ("iptables-legacy", "ip6tables-legacy"):
        lab.pod.attempt([command, "-t", "nat", "-F"])


def _compare(agent: RunningAgent) -> list[Row]:
    """Hold the ledger against what was dialled: line by line, and nothing beside."""
    wanted = {step.booked: step for step in (OLD, *STEPS, *UPSTREAM, LEAK)}
    with suppress(LabError):  # the table says what is missing
        agent.wait(lambda: {booked for booked, _ in _ledger(agent)} >= wanted.keys())
    found: Counter[Booked] = Counter()
    sizes: Counter[Booked] = Counter()
    for booked, (connections, size) in _ledger(agent):
        found[booked] += connections
        sizes[booked] += size
    rows = [_row(booked, wanted.get(booked), found[booked], sizes[booked]) for booked in {**wanted, **found}]
    return [*rows, ("", "flows that leaked", "3 flows", f"{len(agent.flows(leaks='1'))} flows", "")]


def _ledger(agent: RunningAgent) -> list[tuple[Booked, tuple[int, int]]]:
    return [
        (
            Booked(*(flow[name] for name in ("container", "address", "port", "protocol", "verdict", "reason"))),
            (flow["connections"], flow["bytes"]),
        )
        for flow in agent.flows()
    ]


def _row(booked: Booked, step: Step | None, connections: int, size: int) -> Row:
    where = f"[{booked.address}]" if ":" in booked.address else booked.address
    suffix = "/udp" if booked.protocol == "udp" else ""
    expected = f"{booked.verdict}, {step.times} new" if step else "nothing of the kind"
    happened = f"{booked.verdict}, {connections} new" if size else "not seen"
    why = f"{booked.reason}, {size} bytes"
    return f"{where}:{booked.port}{suffix}", step.what if step else "?", expected, happened, why
