"""What a node may lack: told in /readyz with the way out, by a metric and by ``doctor``, and pods are intercepted."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from nodeagent.agent.census import boot_seconds
from nodeagent.bpf.counting import detach
from tests.kernel.losses import CAPACITY, DATAGRAM, crowd, flood
from tests.lab import Cgroup, Dial, Netns, PodCgroups, Topology, istio_like
from tests.lab.agent import NODEAGENT, Manifest, RunningAgent, inject

pytestmark = pytest.mark.kernel

UID = "7c1e-fault"
FAR = Dial("203.0.113.10", 443)


@dataclass(frozen=True)
class Fault:
    """What is wrong with a node: where things are looked for in *folder*, and what is said about it."""

    says: str
    condition: str
    words: str
    finding: str
    places: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""
    """A program that the kernel refuses."""
    fatal: bool = True


FAULTS = (
    Fault("no BPF file system", "counting", "no BPF file system", "bpffs", {"--bpffs": "empty"}),
    Fault("a BPF file system that is not there", "counting", "no BPF file system", "bpffs", {"--bpffs": "gone"}),
    Fault("no cgroup v2 directory", "counting", "cannot open the cgroup", "cgroup2", {"--cgroup": "gone"}),
    Fault("a cgroup that is not of v2", "counting", "not in the cgroup v2 hierarchy", "cgroup2", {"--cgroup": "empty"}),
    Fault("a kernel that refuses the egress program", "counting", "'egress'", "program egress", refused="egress"),
    Fault(
        "a kernel that refuses what can be done without",
        "hooks",
        "counts without it",
        "program sockops",
        refused="sockops",
        fatal=False,
    ),
    Fault("state that cannot be written", "state", "file/state", "state", {"--state-dir": "file/state"}),
)


class Node:
    """A node with a fault: an agent runs there, and ``doctor`` looks at it."""

    def __init__(self, agent: RunningAgent, folder: Path, fault: Fault) -> None:
        self.agent, self._fault = agent, fault
        (folder / "empty").mkdir()
        (folder / "file").write_text("in the way")
        self._places = [word for name, to in fault.places.items() for word in (name, str(folder / to))]
        self._before = ("env", f"PYTHONPATH={_refusing(folder, fault.refused)}") if fault.refused else ()

    def start(self) -> None:
        """Start the agent where the fault is."""
        self.agent.before = self._before
        self.agent.start(*self._places)

    def doctor(self) -> dict[str, object]:
        """Return what it says of the fault."""
        command = [*self._before, *NODEAGENT, "doctor", "-o", "json", *self.agent.places, *self._places]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"pods can be programmed all the same: {done.stderr}"
        return next(found for found in json.loads(done.stdout) if found["what"] == self._fault.finding)

    def reasons(self) -> dict[str, tuple[str, bool]]:
        """Return what /readyz names: condition, words, whether it is fatal."""
        said = json.loads(self.agent.get("/readyz", inner=False)[1])["reasons"]
        return {reason["condition"]: (reason["message"], reason["fatal"]) for reason in said}


def _refusing(folder: Path, program: str) -> Path:
    """Return a folder for PYTHONPATH that lets the kernel refuse *program*, in whatever process loads it."""
    return inject(
        folder,
        "from nodeagent.bpf import syscalls\n"
        "load = syscalls.load_program\n"
        "def refuse(kind, name, *arguments):\n"
        f"    if name == 'na_{program}':\n"
        f"        raise OSError({errno.EINVAL}, 'Invalid argument: unknown func')\n"
        "    return load(kind, name, *arguments)\n"
        "syscalls.load_program = refuse\n",
    )


@pytest.fixture
def stopped(tmp_path: Path, kubepods: Cgroup, programs: Path) -> Iterator[RunningAgent]:
    """Make an agent that was not started yet; what it pins goes with it."""
    running = RunningAgent(tmp_path, kubepods.path, programs)
    with running.stopping():
        yield running
    detach()


@pytest.fixture
def counted(kubepods: Cgroup) -> Iterator[Topology]:
    """Make a pod in a cgroup of its own, where agents count."""
    with Topology(cgroups=PodCgroups(kubepods.child("kubepods"), UID)) as made:
        yield made


def diagnosis(agent: RunningAgent) -> dict[str, str]:
    """Return what ``doctor`` finds wrong with the node where *agent* runs, and with the agent: details by name."""
    command = [*NODEAGENT, "doctor", "-o", "json", *agent.places, "--api", agent.api_at]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {found["what"]: found["detail"] for found in json.loads(done.stdout) if not found["ok"]}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.says)
def test_it_is_told_and_pods_are_intercepted(
    fault: Fault, stopped: RunningAgent, lab: Topology, tmp_path: Path
) -> None:
    node = Node(stopped, tmp_path, fault)
    stopped.add(Manifest("web", lab.pod.path))
    node.start()
    stopped.wait(lambda: stopped.pod("web").get("in_sync"))
    assert lab.client.connect(FAR).verdict == "intercepted"
    stopped.wait(lambda: fault.words in node.reasons().get(fault.condition, ("", False))[0])
    assert node.reasons()[fault.condition][1] == fault.fatal
    assert (stopped.get("/readyz", inner=False)[0] == 503) == fault.fatal
    stopped.wait(lambda: stopped.metrics()[f'nodeagent_trouble{{condition="{fault.condition}"}}'] == 1)
    found = node.doctor()
    assert (found["ok"], found["fatal"]) == (False, False), found


def test_a_healthy_node_is_told_to_be_one(agent: RunningAgent) -> None:
    agent.wait(lambda: not agent.troubles())
    troubles = {name: value for name, value in agent.metrics().items() if name.startswith("nodeagent_trouble{")}
    assert set(troubles.values()) == {0}
    done = subprocess.run(
        [*NODEAGENT, "doctor", "-o", "json", *agent.places, "--api", agent.api_at],
        capture_output=True,
        text=True,
        check=False,
    )
    facts = json.loads(done.stdout)
    (itself,) = (fact for fact in facts if fact["what"] == "agent")
    assert itself["detail"] == f"process {agent.pid} is at work here, and answers at {agent.api_at}"
    assert {fact["what"] for fact in facts if not fact["ok"]} <= {"pods from nri", "pods from namespaces"}, facts
    assert not [fact for fact in facts if fact.get("fatal") and not fact["ok"]]
    assert agent.counts(), "looking at it does not disturb what counts"


def test_a_full_map_keeps_the_totals_exact_and_is_told(agent: RunningAgent, counted: Topology) -> None:
    more = 300
    agent.add(Manifest("web", counted.pod.path, uid=UID))
    agent.settle()
    agent.wait(lambda: agent.pod("web")["counted_by"])
    flood(counted, CAPACITY + more)
    agent.wait(lambda: {"lost_updates", "map"} <= agent.troubles())
    metrics = agent.metrics()
    assert metrics['nodeagent_bpf_lost_updates_total{map="slots"}'] == more
    assert metrics['nodeagent_bpf_map_entries{map="slots"}'] == CAPACITY
    assert metrics['nodeagent_bpf_map_capacity{map="slots"}'] == CAPACITY
    assert metrics['nodeagent_trouble{condition="lost_updates"}'] == metrics['nodeagent_trouble{condition="map"}'] == 1
    assert totals_of(agent) == {"non_tcp": CAPACITY * DATAGRAM, "overflow": more * DATAGRAM}
    (overflow,) = agent.flows(reason="overflow")
    assert (overflow["connections"], overflow["packets"], overflow["address"]) == (more, more, None)
    assert {"agent: lost_updates", "agent: map"} <= diagnosis(agent).keys()
    assert counted.client.connect(FAR).verdict == "intercepted"
    agent.wait(lambda: totals_of(agent).get("overflow", 0) > more * DATAGRAM)
    crowd(agent)
    before = agent.metrics()["nodeagent_egress_overflow_bytes_total"]
    flood(counted, 10)
    agent.wait(lambda: agent.metrics()["nodeagent_egress_overflow_bytes_total"] == before + 10 * DATAGRAM)


def totals_of(agent: RunningAgent) -> dict[str, float]:
    """Return the bytes that the one pod sent past its sidecar and through it, by reason, as metrics have them."""
    prefix = 'nodeagent_egress_verdict_bytes_total{source_namespace="default",source_pod="web",verdict='
    found = {name: value for name, value in agent.metrics().items() if name.startswith(prefix)}
    sums: dict[str, float] = {}
    for name, value in found.items():
        reason = name.rpartition('reason="')[2].rstrip('"}')
        sums[reason] = sums.get(reason, 0) + value
    return {reason: size for reason, size in sums.items() if size}


def test_a_sidecar_that_does_not_listen_is_told_and_its_pod_fails_closed(agent: RunningAgent, lab: Topology) -> None:
    """In ``status``, /readyz and a metric; and that it listens again is told as well."""
    agent.configure("resync: {seconds: 1}\n")
    web = Manifest("web", lab.pod.path, {"proxyPort": "15999"})
    agent.add(web)
    agent.settle()
    agent.wait(lambda: "no sidecar listens at port 15999" in agent.pod("web")["detail"])
    assert agent.pod("web")["answered"] is False
    assert lab.client.connect(FAR).verdict == "refused"
    assert "sidecar" in agent.troubles()
    agent.wait(lambda: agent.metrics()["nodeagent_unanswered_pods"] == 1)
    assert "no sidecar listens at port 15999: connections are refused" in agent.command("status").stdout
    with lab.pod.socket(socket.AF_INET, socket.SOCK_STREAM) as sidecar:
        sidecar.bind(("127.0.0.1", 15999))
        sidecar.listen()
        agent.wait(lambda: agent.pod("web")["answered"] is True)
        assert "sidecar" not in agent.troubles()
        agent.wait(lambda: agent.metrics()["nodeagent_unanswered_pods"] == 0)


def test_a_bpf_file_system_that_comes_back_is_counted_on(stopped: RunningAgent, lab: Topology, tmp_path: Path) -> None:
    bpffs = tmp_path / "bpffs"
    bpffs.mkdir()
    stopped.add(Manifest("web", lab.pod.path))
    stopped.start("--bpffs", str(bpffs))
    stopped.settle()
    assert not stopped.counts()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(bpffs)], check=True)  # in the tests' own mounts
    try:
        os.kill(stopped.programmer_pid, signal.SIGKILL)  # or wait half a minute
        stopped.wait(lambda: stopped.counts() and stopped.pod("web")["counted_by"])
    finally:
        stopped.stop()
        detach(bpffs)
        subprocess.run(["umount", str(bpffs)], check=True)


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """Make a directory where a BPF file system may be mounted, in the tests' own mounts."""
    path = tmp_path / "bpffs"
    path.mkdir()
    mount(path)
    yield path
    detach(path)
    subprocess.run(["umount", str(path)], check=False)


def mount(path: Path) -> None:
    """Mount an empty one."""
    subprocess.run(["mount", "-t", "bpf", "bpf", str(path)], check=True)


def test_pins_that_somebody_removes_are_made_again_and_no_packet_is_missed(
    stopped: RunningAgent, counted: Topology, bpffs: Path
) -> None:
    stopped.add(Manifest("web", counted.pod.path, uid=UID))
    stopped.start("--bpffs", str(bpffs))
    stopped.settle()
    stopped.wait(lambda: stopped.counts() and stopped.pod("web")["counted_by"])
    pins = {str(path.relative_to(bpffs)) for path in bpffs.rglob("*")}
    for part in ("nodeagent", "nodeagent/counting/links", "nodeagent/counting/generation-1/slots"):
        subprocess.run(["rm", "-rf", str(bpffs / part)], check=True)
        counted.client.connect(FAR)
        stopped.wait(lambda: {str(path.relative_to(bpffs)) for path in bpffs.rglob("*")} == pins)
    os.kill(stopped.programmer_pid, signal.SIGKILL)
    counted.client.connect(FAR)
    stopped.wait(stopped.counts)
    assert {flow["reason"]: flow["connections"] for flow in stopped.flows()} == {"included": 4}


def test_a_bpf_file_system_that_is_taken_away_is_told_and_counting_goes_on(
    stopped: RunningAgent, counted: Topology, bpffs: Path
) -> None:
    stopped.add(Manifest("web", counted.pod.path, uid=UID))
    stopped.start("--bpffs", str(bpffs))
    stopped.settle()
    stopped.wait(lambda: stopped.counts() and stopped.pod("web")["counted_by"])
    subprocess.run(["umount", str(bpffs)], check=True)
    stopped.wait(lambda: "pins" in stopped.troubles())
    assert "no BPF file system is mounted: mount one" in stopped.get("/readyz", inner=False)[1]
    assert stopped.metrics()['nodeagent_trouble{condition="pins"}'] == 1
    assert counted.client.connect(FAR).verdict == "intercepted"
    mount(bpffs)
    stopped.wait(lambda: not stopped.troubles())
    stopped.stop()
    counted.client.connect(FAR)
    stopped.start("--bpffs", str(bpffs))
    stopped.wait(lambda: stopped.counts() and stopped.flows())
    assert {flow["reason"]: flow["connections"] for flow in stopped.flows()} == {"included": 2}


def test_maps_that_are_gone_for_good_swallow_nothing_of_what_comes(
    stopped: RunningAgent, counted: Topology, bpffs: Path
) -> None:
    busy, idle = FAR, replace(FAR, port=444, dst="203.0.113.20")
    stopped.configure("ledger: {topDestinations: 1}\n")
    stopped.add(Manifest("web", counted.pod.path, uid=UID))
    stopped.start("--bpffs", str(bpffs))
    stopped.settle()
    stopped.wait(lambda: stopped.counts() and stopped.pod("web")["counted_by"])
    for to in (busy, busy, busy, idle):
        counted.client.connect(to)
    stopped.wait(lambda: included(stopped) == (4, 4))
    os.kill(stopped.programmer_pid, signal.SIGSTOP)  # else it would pin them again
    subprocess.run(["umount", str(bpffs)], check=True)
    mount(bpffs)
    os.kill(stopped.programmer_pid, signal.SIGKILL)
    stopped.wait((bpffs / "nodeagent/counting/links/egress").exists)
    stopped.wait(lambda: stopped.counts() and stopped.pod("web")["counted_by"])
    assert included(stopped) == (4, 4), "what was counted stays"
    for _ in range(2):
        counted.client.connect(idle)
    stopped.wait(lambda: included(stopped) == (6, 6))


def included(agent: RunningAgent) -> tuple[int, int]:
    """Return the connections that were intercepted, as flows and as metrics have them."""
    name = "nodeagent_egress_connections_total{"
    metrics = sum(v for key, v in agent.metrics().items() if key.startswith(name) and 'reason="included"' in key)
    return sum(flow["connections"] for flow in agent.flows(reason="included")), int(metrics)


def test_the_compiling_is_waited_for_and_told_once(stopped: RunningAgent, lab: Topology) -> None:
    (stopped.state / "programs").unlink()
    stopped.add(Manifest("web", lab.pod.path))
    stopped.start()
    stopped.settle()
    stopped.wait(stopped.counts)
    assert len(stopped.events("nothing is counted")) == 1
    assert not [event for event in stopped.events("refused") if event["verb"] == "start_counting"]
    shutil.rmtree(stopped.state / "programs")


@pytest.mark.slow
def test_a_conntrack_table_that_is_really_full_lets_nothing_past_and_is_told(
    agent: RunningAgent, lab: Topology
) -> None:
    agent.configure("resync: {seconds: 1}\n")
    agent.add(Manifest("web", lab.pod.path))
    agent.settle()
    assert lab.client.connect(FAR).verdict == "intercepted"
    lab.pod.run([sys.executable, "-m", "tests.lab.conntrack", "fill"])
    outcome = lab.client.connect(replace(FAR, timeout=1.5))
    assert outcome.error is not None, "neither through the sidecar nor past it"
    agent.wait(lambda: "conntrack" in agent.troubles())
    assert agent.metrics()['nodeagent_trouble{condition="conntrack"}'] == 1
    assert "connections tracked" in diagnosis(agent)["agent: conntrack"]
    assert agent.pod("web")["in_sync"]
    lab.pod.run([sys.executable, "-m", "tests.lab.conntrack", "empty"])
    assert lab.client.connect(FAR).verdict == "intercepted"
    agent.wait(lambda: not agent.troubles())


def test_a_full_conntrack_table_is_told(stopped: RunningAgent, lab: Topology, tmp_path: Path) -> None:
    """The limit is the machine's, and not ours to lower: the programmer is shown another one, the count is real."""
    (tmp_path / "limit").write_text("4\n")
    at = inject(
        tmp_path, f"from nodeagent.netns import conntrack\nconntrack._LIMIT = Path({str(tmp_path / 'limit')!r})\n"
    )
    stopped.before = ("env", f"PYTHONPATH={at}")
    stopped.configure("resync: {seconds: 1}\n")
    stopped.add(Manifest("web", lab.pod.path))
    stopped.start()
    stopped.settle()
    assert "conntrack" not in stopped.troubles()
    assert {lab.client.connect(FAR).verdict for _ in range(6)} == {"intercepted"}
    stopped.wait(lambda: "conntrack" in stopped.troubles())
    assert stopped.metrics()['nodeagent_trouble{condition="conntrack"}'] == 1
    assert " of 4 connections tracked" in stopped.get("/readyz", inner=False)[1]


def test_each_refusal_is_counted_once_by_its_reason(agent: RunningAgent, lab: Topology, pod: Netns) -> None:
    agent.configure("resync: {seconds: 1}\n")
    istio_like(pod, "nft")
    elsewhere = json.loads(Manifest("elsewhere", lab.pod.path).text())
    elsewhere["status"]["podIPs"] = [{"ip": "10.244.7.7"}]
    agent.write("elsewhere.json", json.dumps(elsewhere))
    agent.add(Manifest("host", "/proc/1/ns/net"), Manifest("on-host", host_network=True), Manifest("meshed", pod.path))
    wanted = {"host_netns": 1, "missing_address": 1, "other_tool": 1, "host_network": 1}
    agent.wait(lambda: refusals(agent) == wanted)
    agent.wait(lambda: agent.metrics()['nodeagent_reconciliations_total{result="refused"}'] > 6)
    assert refusals(agent) == wanted, "asked again and again, refused once"
    with subprocess.Popen([*lab.pod.enter, "--", "nft", "-i"], stdin=subprocess.PIPE) as owner:
        assert owner.stdin
        owner.stdin.write(b"add table inet nodeagent { flags owner; }\n")
        owner.stdin.flush()
        agent.wait(lambda: "nodeagent" in lab.pod.run(["nft", "list", "ruleset"]))
        agent.add(Manifest("owned", lab.pod.path))
        agent.wait(lambda: refusals(agent) == wanted | {"other_tool": 2})
        owner.kill()
    agent.settle("owned")


def refusals(agent: RunningAgent) -> dict[str, float]:
    """Return the reasons for which something was refused, and how often."""
    prefix = 'nodeagent_refusals_total{reason="'
    found = {name: value for name, value in agent.metrics().items() if name.startswith(prefix)}
    return {name.removeprefix(prefix).rstrip('"}'): value for name, value in found.items() if value}


@pytest.mark.parametrize("offset", [86400, 10**8], ids=["a day ahead", "three years ahead"])
def test_clocks_that_differ_after_a_restart_move_no_count(
    stopped: RunningAgent, counted: Topology, offset: int
) -> None:
    """A restart in a time namespace: its monotonic clocks, since boot and without suspension, are ahead."""
    stopped.add(Manifest("web", counted.pod.path, uid=UID))
    stopped.start()
    stopped.settle()
    stopped.wait(stopped.counts)
    stopped.wait(lambda: stopped.pod("web")["counted_by"])
    counted.client.connect(FAR)
    before = {flow["reason"]: flow["connections"] for flow in stopped.flows()}
    assert before["included"] == 1
    stopped.stop()
    stopped.before = ("unshare", "--time", "--monotonic", str(offset), "--boottime", str(offset), "--fork", "--")
    stopped.start()
    _assert_goes_on(stopped, before)
    os.kill(stopped.programmer_pid, signal.SIGKILL)  # unshare's child: the agent itself
    stopped.kill()
    stopped.before = ()
    stopped.start()  # and back: for the agent, its clocks went backwards
    _assert_goes_on(stopped, before)


def _assert_goes_on(agent: RunningAgent, before: Mapping[str, int]) -> None:
    agent.wait(lambda: agent.counts() and agent.pod("web").get("counted_by"))
    agent.settle()
    assert {flow["reason"]: flow["connections"] for flow in agent.flows()} == before


def test_no_clock_of_the_agent_is_one_that_people_set() -> None:
    begin = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert begin <= boot_seconds() <= time.clock_gettime(time.CLOCK_BOOTTIME)
    found = subprocess.run(
        ["grep", "-rnE", r"time\.time\(|datetime\.(now|utcnow)|CLOCK_REALTIME", "nodeagent", "--include=*.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(sys.modules["nodeagent"].__path__[0]).parent,
    )
    # What carries people's time, to be shown to them and never reckoned with: Events, and what the command line prints.
    stamps = tuple(f"nodeagent/{file}.py:" for file in ("kube/events", "cli/status", "cli/follow", "cli/archive"))
    assert [line for line in found.stdout.splitlines() if not line.startswith(stamps)] == []
