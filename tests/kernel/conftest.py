"""What the kernel tests share: a programmer in its child process, and pods to program."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest

from nodeagent import model
from nodeagent.bpf.counting import Counting, Settings, detach
from nodeagent.compile import compile_policy
from nodeagent.model import Connection, Policy, RuleSet
from nodeagent.model.flow import CountedPod
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import Choice, Target
from tests.cases.policies import POLICIES
from tests.kernel.counting_lab import DNS_PORT, PROXY_PORT, CountedTopology
from tests.lab import POD_ADDRESSES, Cgroup, Client, Dial, Netns, PodCgroups, Proto, TestCgroup, Topology
from tests.lab import Connection as LabConnection
from tests.lab.agent import RunningAgent
from tests.lab.mounts import use_private_mounts

_ON_EVERY_KERNEL = ("default", "everything_at_once")
EVERY_POLICY = [
    pytest.param(name, marks=() if name in _ON_EVERY_KERNEL else pytest.mark.exhaustive) for name in POLICIES
]
"""All policies; those but the telling ones are for this machine's kernel alone."""

BACKENDS = (Choice.NFT, Choice.LEGACY)
THROUGH_NET1 = "172.16.9.9"


@pytest.fixture(scope="session", autouse=True)
def surroundings() -> Iterator[None]:
    """Mounts and an xtables lock of our own: the machine's would be changed, and would block others."""
    use_private_mounts()
    with Netns() as netns:  # where connection tracking is a module, it is loaded from here on, sysctls included
        netns.nft("table ip x { chain c { type filter hook output priority 0; ct state invalid; }; }")
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTABLES_LOCKFILE", str(Path(directory) / "xtables.lock"))
        yield


@pytest.fixture(scope="session")
def programmer() -> Iterator[ChildProgrammer]:
    """One programmer for the whole session, as on a node."""
    with ChildProgrammer() as child:
        yield child


@pytest.fixture
def lab() -> Iterator[Topology]:
    """Build a fresh pod and its world."""
    with Topology() as topology:
        yield topology


@pytest.fixture
def pod() -> Iterator[Netns]:
    """Make a bare namespace, for tests that need no traffic."""
    with Netns() as netns:
        yield netns


@pytest.fixture(params=BACKENDS, ids=str)
def backend(request: pytest.FixtureRequest) -> Choice:
    """Each backend in turn."""
    choice: Choice = request.param
    return choice


class Opener(Protocol):
    """Dials, and keeps the connection open until the test ends."""

    def __call__(self, client: Client, to: Dial) -> LabConnection:
        """Return the open connection."""


@pytest.fixture
def open_to() -> Iterator[Opener]:
    """Open connections that the end of the test closes."""
    with ExitStack() as opened:
        yield lambda client, to: opened.enter_context(client.open_connection(to))


class Pod:
    """A namespace, a programmer and a backend: what most tests do, in one word each."""

    def __init__(self, programmer: ChildProgrammer, netns: Netns, backend: Choice) -> None:
        self.programmer, self.backend = programmer, backend
        self.target = Target(netns.path)

    def apply(self, policy: Policy | RuleSet) -> bool:
        """Apply a policy or a rule set; return whether anything had to be done."""
        ruleset = policy if isinstance(policy, RuleSet) else compile_policy(policy)
        applied = self.programmer.apply(self.target, ruleset, self.backend)
        assert not applied.remaining
        return bool(applied.found.plan)

    def differs(self, policy: Policy | None) -> bool:
        """Say whether the kernel holds anything but *policy*."""
        ruleset = compile_policy(policy) if policy else None
        return bool(self.programmer.observe(self.target, ruleset, self.backend).plan)


@pytest.fixture(scope="module")
def shared_lab() -> Iterator[Topology]:
    """One pod and its world for all cases of a file: each is programmed over the one before, as on a live node."""
    with Topology() as topology:
        yield topology


@pytest.fixture(params=BACKENDS, ids=str, scope="module")
def shared_pod(request: pytest.FixtureRequest, programmer: ChildProgrammer, shared_lab: Topology) -> Pod:
    """Return the shared pod under each backend; programming it removes the other's rules."""
    return Pod(programmer, shared_lab.pod, request.param)


def dial(connection: Connection) -> Dial:
    """Return how the lab makes *connection*."""
    proto: Proto = "udp" if connection.protocol is model.Protocol.UDP else "tcp"
    uid, gid = (1000 if n is None else n for n in (connection.uid, connection.gid))
    return Dial(str(connection.destination), connection.port, proto, uid, gid)


def interface_to(destination: str) -> str:
    """Return the device that the lab's pod reaches *destination* through."""
    if ip_address(destination).is_loopback or destination in POD_ADDRESSES:
        return "lo"
    return "net1" if destination == THROUGH_NET1 else "eth0"


def connection_to(destination: str, port: int) -> Connection:
    """Return an app's TCP connection to *destination*, as the rules see it."""
    return Connection(ip_address(destination), port, model.Protocol.TCP, 1000, 1000, interface_to(destination))


# -- counting -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def node_cgroup() -> Iterator[Cgroup]:
    """Make a cgroup that stands for the node's: programs are attached to it, and pods are below it."""
    with TestCgroup() as cgroup:
        yield cgroup


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where all of a session keep what they compiled.

    ``NODEAGENT_COMPILED=DIR`` has what was compiled elsewhere, which is the same for each kernel: it takes an emulated
    one minutes.
    """
    folder = tmp_path_factory.mktemp("programs")
    folder.chmod(0o700)
    if given := os.environ.get("NODEAGENT_COMPILED"):
        shutil.copytree(given, folder, dirs_exist_ok=True)
        folder.chmod(0o700)
    return folder


@pytest.fixture(scope="session")
def counting_settings(node_cgroup: Cgroup, programs: Path) -> Settings:
    """Where the tests count: compiled once a session."""
    return Settings(cgroup=node_cgroup.path, cache=programs)


@pytest.fixture
def counting(counting_settings: Settings) -> Iterator[Counting]:
    """Count in a fresh set of maps, until the test ends."""
    with Counting.load(counting_settings) as loaded:
        yield loaded
        loaded.detach()


@pytest.fixture(scope="module")
def module_counting(counting_settings: Settings) -> Iterator[Counting]:
    """Count in one set of maps for all tests of a module."""
    with Counting.load(counting_settings) as loaded:
        yield loaded
        loaded.detach()


@pytest.fixture(scope="module")
def counted(module_counting: Counting, node_cgroup: Cgroup) -> Iterator[CountedTopology]:
    """Count a pod with its sidecar, for all tests of a module."""
    cgroups = PodCgroups(node_cgroup, uuid4().hex)
    with (
        Topology(cgroups=cgroups) as topology,
        CountedTopology(topology, cgroups, module_counting, counted_pod(cgroups)) as lab,
    ):
        yield lab


def counted_pod(cgroups: PodCgroups, number: int = 1, epoch: int = 2) -> CountedPod:
    """Return what the kernel is told about the lab's pod."""
    sidecars = frozenset({cgroups.sidecar.id})
    return CountedPod(cgroups.pod.id, number, epoch, PROXY_PORT, DNS_PORT, (1337,), (1337,), sidecars)


# -- a running agent ------------------------------------------------------------------------


@pytest.fixture
def kubepods() -> Iterator[Cgroup]:
    """Make a cgroup that stands for a node's: agents attach to it, and pods are in its ``kubepods``."""
    with TestCgroup() as cgroup:
        cgroup.child("kubepods")
        yield cgroup


@pytest.fixture
def agent(tmp_path: Path, kubepods: Cgroup, programs: Path) -> Iterator[RunningAgent]:
    """Run an agent; what it pinned goes with it."""
    with RunningAgent(tmp_path, kubepods.path, programs) as running:
        running.wait(running.counts)  # the first of a session compiles
        yield running
    detach()
