"""A small node to look at: some pods with sidecars, a world, an agent, and what they say to each other.

The agent listens inside a network namespace that holds loopback and nothing else, and that is where the browser
runs as well: whatever the page needs, it has from the agent.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.lab import Cgroup, Dial, Netns, PodCgroups, SidecarSettings, Topology
from tests.lab.agent import Manifest, RunningAgent

CONFIGURATION = """\
ranges:
  payments-partner: [198.51.100.0/24]
  cache: [192.0.2.16/28]
  time-servers: [192.0.2.64/28]
  search: ["2001:db8:5::/48"]
"""
CONTAINERS = {"app": "app", "sidecar": "istio-proxy"}


@dataclass(frozen=True)
class Talk:
    """What a pod says: to whom, how often, how many bytes each time; from the sidecar's container if it is its own."""

    dial: Dial
    size: int = 200
    times: int = 1
    by_sidecar: bool = False


@dataclass(frozen=True)
class Actor:
    """A pod of the scene, and all that it says."""

    namespace: str
    name: str
    annotations: Mapping[str, str] = field(default_factory=dict)
    says: tuple[Talk, ...] = ()

    @property
    def uid(self) -> str:
        """The pod's UID."""
        return f"5e1f9d0e-{self.namespace}-{self.name}"


SCENE = (
    Actor(
        "shop",
        "web-7d4b9c6f5-x2x8q",
        {"excludeOutboundIPRanges": "@payments-partner, 2001:db8:5::/48", "dnsCapture": "true"},
        (
            Talk(Dial("203.0.113.10", 443), 60_000, 4),
            Talk(Dial("203.0.113.24", 443), 30_000, 2),
            Talk(Dial("198.51.100.20", 443), 40_000, 3),
            Talk(Dial("2001:db8:5::1", 9200), 15_000, 2),
            Talk(Dial("203.0.113.10", 443, "udp"), 1200, 9),
            Talk(Dial("10.96.0.10", 53, "udp"), 100, 6),
            Talk(Dial("203.0.113.10", 443, uid=1337, gid=1337), 60_000, 4, by_sidecar=True),
        ),
    ),
    Actor(
        "shop",
        "cart-6c8d5-kk2pd",
        {"excludeOutboundPorts": "6379"},
        (
            Talk(Dial("192.0.2.17", 6379), 50_000, 3),
            Talk(Dial("203.0.113.10", 443), 40_000, 2),
            Talk(Dial("2001:db8::10", 443), 20_000, 2),
        ),
    ),
    Actor(
        "payments",
        "api-0",
        {"traffic.sidecar.istio.io/excludeOutboundIPRanges": "198.51.100.0/24"},
        (
            Talk(Dial("198.51.100.20", 443), 60_000, 4),
            Talk(Dial("198.51.100.21", 8443), 20_000, 1),
            Talk(Dial("203.0.113.90", 443), 50_000, 3),
            Talk(Dial("192.0.2.65", 123, "udp"), 90, 4),
        ),
    ),
    Actor("platform", "log-shipper", {"intercept": "observe"}, (Talk(Dial("203.0.113.200", 24224), 60_000, 2),)),
    Actor(
        "legacy",
        "batch-28110-5xw8j",
        {},
        (
            Talk(Dial("203.0.113.10", 443), 45_000, 2),
            Talk(Dial("203.0.113.77", 5432, uid=1337), 12_000, 2),
        ),
    ),
)


@dataclass(frozen=True)
class House:
    """A pod that stands: its namespaces and its cgroups."""

    actor: Actor
    lab: Topology
    cgroups: PodCgroups

    @property
    def manifest(self) -> Manifest:
        """The pod as the agent is told of it."""
        actor = self.actor
        return Manifest(
            actor.name, self.lab.pod.path, actor.annotations, actor.uid, CONTAINERS, namespace=actor.namespace
        )

    def play(self) -> None:
        """Say everything once."""
        for talk in self.actor.says:
            self.say(talk)

    def say(self, talk: Talk) -> None:
        """Dial, send, and hang up, as often as *talk* wants."""
        cgroup = self.cgroups.sidecar if talk.by_sidecar else self.cgroups.app
        for _ in range(talk.times):
            with self.lab.client.open_connection(replace(talk.dial, cgroup=str(cgroup.path))) as connection:
                connection.ask("x" * talk.size)


@dataclass(frozen=True)
class Stage:
    """An agent and its pods."""

    agent: RunningAgent
    houses: tuple[House, ...]
    kubepods: Cgroup
    place: Netns
    """Where the agent listens and the browser runs."""

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{self.agent.api_at}/"

    def house(self, name: str) -> House:
        """Return the house of the pod whose name begins so."""
        return next(house for house in self.houses if house.actor.name.startswith(name))

    @contextmanager
    def joined_by(self, actor: Actor) -> Iterator[House]:
        """Let one more pod stand beside the others for the length of the block; it says nothing by itself."""
        with ExitStack() as built:
            house = _house(built, actor, self.kubepods)
            self.agent.add(house.manifest)
            built.callback(self.agent.remove, house.actor.name)
            self.agent.wait(lambda: self._is_ready(actor))
            yield house

    def settle(self) -> None:
        """Wait until every pod is as it should be, and counted."""
        self.agent.wait(lambda: all(self._is_ready(house.actor) for house in self.houses))

    def _is_ready(self, actor: Actor) -> bool:
        pod = self.agent.pod(actor.name)
        is_in_force = pod and pod["epoch"] and pod["epoch"] % 2 == 0 and pod["in_sync"] is not False
        return bool(is_in_force and pod["counted_by"])


@contextmanager
def staged(
    folder: Path, node: Cgroup, programs: Path, actors: tuple[Actor, ...] = SCENE, before: tuple[str, ...] = ()
) -> Iterator[Stage]:
    """Build the scene, and let everybody say what they have to; nothing is left afterwards.

    *before* are words before the agent's command.
    """
    kubepods = node.child("kubepods")
    with ExitStack() as built:
        place = built.enter_context(Netns())
        houses = tuple(_house(built, actor, kubepods) for actor in actors)
        agent = built.enter_context(RunningAgent(folder, node.path, programs, CONFIGURATION, within=place).stopping())
        agent.before = before
        agent.start()
        agent.wait(agent.counts)
        agent.add(*(house.manifest for house in houses))
        stage = Stage(agent, houses, kubepods, place)
        stage.settle()
        for house in houses:
            house.play()
        yield stage


def _house(built: ExitStack, actor: Actor, kubepods: Cgroup) -> House:
    cgroups = PodCgroups(kubepods, actor.uid)
    lab = built.enter_context(Topology(SidecarSettings(), cgroups))
    return House(actor, lab, cgroups)
