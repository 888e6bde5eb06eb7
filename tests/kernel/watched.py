"""A pod under traffic of each kind that dashboards tell apart, an agent that counts it, a Prometheus that watches."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from daemonset.observability.files import HOME
from tests.lab import Cgroup, Connection, Dial, Netns, NotConnectedError, PodCgroups, SidecarSettings, Topology
from tests.lab.agent import Manifest, RunningAgent
from tests.lab.process import LabError
from tests.lab.prometheus import RunningPrometheus

UID: Final = "5d2c8e04-uid"
FAR: Final = Dial("203.0.113.10", 443)

CONFIGURATION: Final = (
    "ranges: {partner: [198.51.100.0/24], attic: [192.0.2.0/24]}\nproxy: {ipv6: bypass}\nresync: {seconds: 1}\n"
)
"""``attic`` is excluded, and nobody dials it; IPv6 is left alone, which is a leak."""

_ORDERLY: Final = (
    FAR,
    Dial("203.0.113.10", 443, "udp"),  # the same destination: QUIC
    Dial("198.51.100.7", 443),  # partner
    Dial("203.0.113.20", 3306),  # an excluded port
)
_LEAKING: Final = (
    Dial("2001:db8::10", 443),
    replace(FAR, uid=1337, gid=1337),  # an impostor
)
_PAUSE: Final = 0.02
_STIR_EVERY: Final = 100


@dataclass
class Watched:
    """What is watched, and who watches.

    While ``stirs`` is true configuration, annotations and rules change; while ``leaks`` is, some traffic leaks.
    """

    lab: Topology
    idle: Netns
    agent: RunningAgent
    prometheus: RunningPrometheus
    stirs: bool = True
    leaks: bool = True
    failure: Exception | None = None
    """Why there is no traffic any more."""
    _ends: threading.Event = field(default_factory=threading.Event)

    def run(self, old: Connection) -> None:
        """Send traffic until the end: all dials in turn, and a connection that is older than the rules."""
        try:
            self._run(old)
        except Exception as error:
            self.failure = error
            raise

    def wait(self, condition: Callable[[], object], what: str = "what is awaited") -> None:
        """Wait until *condition* holds, as long as there is traffic that may bring it about."""

        def holds() -> object:
            if self.failure:
                raise LabError("there is no traffic any more") from self.failure
            return condition()

        self.prometheus.wait(holds, what)

    def _run(self, old: Connection) -> None:
        turn = 0
        while not self._ends.wait(_PAUSE):
            dials = _ORDERLY + (_LEAKING if self.leaks else ())
            self.lab.client.connect(dials[turn % len(dials)])
            if self.leaks:
                with suppress(OSError, NotConnectedError):
                    old.echo()
            turn += 1
            if self.stirs and turn % _STIR_EVERY == 0:
                self._stir(turn)

    def end(self) -> None:
        """Let the traffic end."""
        self._ends.set()

    def _stir(self, turn: int) -> None:
        """Do what agents refuse, and what they put right again; no traffic leaks by it."""
        self.agent.configure("mode: nonsense\n")
        self.agent.add(Manifest("odd", self.idle.path, {"excludeOutboundPorts": f"99999,{turn}"}))
        with suppress(Exception):  # the agent may be about to write
            self.idle.run(["nft", "flush", "ruleset"])
        self.agent.wait(lambda: self.agent.ask("/api/v1/config")["problem"])
        self.agent.configure(CONFIGURATION)


@contextmanager
def watching(folder: Path, node: Cgroup, programs: Path) -> Iterator[Watched]:
    """Set all of it up; nothing is left afterwards."""
    cgroups = PodCgroups(node.child("kubepods"), UID)
    manifest = Manifest("web", uid=UID, containers={"app": "app", "sidecar": "istio-proxy"})
    excludes = {"excludeOutboundIPRanges": "@partner,@attic", "excludeOutboundPorts": "3306"}
    with (
        Topology(SidecarSettings(passthrough=True), cgroups=cgroups) as lab,
        Netns() as idle,
        lab.client.open_connection(FAR) as old,
        RunningAgent(folder, node.path, programs, CONFIGURATION, within=lab.world) as agent,
        RunningPrometheus(lab.world, folder, HOME / "rules" / "nodeagent.yaml") as prometheus,
    ):
        prometheus.wait(lambda: prometheus.query("nodeagent_build_info"))
        web = replace(manifest, netns=lab.pod.path, annotations=excludes)
        agent.add(web, Manifest("odd", idle.path), Manifest("late"), Manifest("stray", "/proc/1/ns/net"))
        agent.settle()
        prometheus.wait(lambda: prometheus.query("nodeagent_egress_verdict_bytes_total"))
        watched = Watched(lab, idle, agent, prometheus)
        traffic = threading.Thread(target=watched.run, args=(old,))
        traffic.start()
        try:
            yield watched
        finally:
            watched.end()
            traffic.join()


@contextmanager
def stolen_table(pod: Netns) -> Iterator[None]:
    """Take the pod's rules away, and let nobody bring them back: another program owns their table meanwhile.

    Who writes at the same moment wins: the kernel refuses the later one, so it is tried until it is true.
    """
    with subprocess.Popen([*pod.enter, "--", "nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as thief:
        assert thief.stdin
        try:
            while "flags owner" not in pod.run(["nft", "list", "ruleset"]):
                thief.stdin.write(b"delete table inet nodeagent; add table inet nodeagent { flags owner; }\n")
                thief.stdin.flush()
                time.sleep(_PAUSE)
            yield
        finally:
            thief.kill()
