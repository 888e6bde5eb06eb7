"""The DaemonSet as it ships: two containers of the real image, with the chart's own securityContext, on a real node."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemonset.packaging.manifests import HOME, render
from nodeagent import __version__
from tests.cluster import Cluster
from tests.cluster.build import helm
from tests.cluster.foreign import ForeignCluster
from tests.cluster.pods import Pod, Pods, listening
from tests.cluster_tests.test_agent import ANSWERS, PORT, PROXY_PORT, annotate, dial, run_web

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

PATIENCE = 420.0
CHECKOUT = Path(__file__).resolve().parents[2]
NAMESPACE, AGENT_UID = "nodeagent", 65532
OURS = ("--set=image.repository=localhost/nodeagent", f"--set=image.tag={__version__}")
NEEDED = {"NET_ADMIN": 12, "NET_BROADCAST": 11, "NET_RAW": 13, "SYS_ADMIN": 21, "SYS_PTRACE": 19}
"""The programmer's capabilities, by the kernel's numbers (linux/capability.h)."""
SECONDS = 25
LOAD = """
import collections, json, socket, sys, time
addresses, port, seconds = sys.argv[1].split(","), int(sys.argv[2]), float(sys.argv[3])
answers, end = collections.Counter(), time.monotonic() + seconds
while time.monotonic() < end:
    for address in addresses:
        try:
            with socket.create_connection((address, port), 10) as sock:
                answers[sock.recv(16).decode()] += 1
        except OSError as error:
            answers[repr(error)] += 1
    time.sleep(0.02)
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class DaemonSet:
    """The one pod of the DaemonSet, on the one node."""

    node: Cluster

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return self.node.kubectl(f"--namespace={NAMESPACE}", *arguments, stdin=stdin)

    def ask(self, *command: str) -> Any:  # noqa: ANN401  # JSON
        """Return what ``nodeagent`` says in the agent's container, whatever its exit code."""
        words = ("exec", "daemonset/nodeagent", "--container=agent", "--", "nodeagent", *command, "-o", "json")
        done = self.node.attempt(["kubectl", f"--namespace={NAMESPACE}", *words])
        return json.loads(done.stdout) if done.stdout else []

    def status(self, pod: Pod) -> dict[str, Any]:
        """Return what ``nodeagent status`` says of *pod*; empty if nothing."""
        found = self.ask("status")
        rows = found["pods"] if isinstance(found, dict) else found
        return next((row for row in rows if row.get("uid") == pod.uid or row.get("pod") == pod.name), {})

    def flows(self, pod: Pod, verdict: str) -> int:
        """Return how many connections *pod* made that had *verdict*."""
        found = self.ask("flows", "--pod", pod.name, "--verdict", verdict)
        return sum(flow["connections"] for flow in found if flow["namespace"] == pod.object["metadata"]["namespace"])

    def wait(self, holds: Callable[[], object], why: Callable[[], object] = lambda: "") -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, (why(), self.logs())
            time.sleep(0.2)

    def settle(self, pod: Pod) -> None:
        """Wait until *pod* is as it should be."""
        self.wait(lambda: self.status(pod).get("in_sync"), lambda: self.status(pod))

    def roll_out(self) -> None:
        """Wait until the pod is ready."""
        try:
            self.kubectl("rollout", "status", "daemonset/nodeagent", f"--timeout={PATIENCE:.0f}s")
        except Exception:
            print(self.kubectl("describe", "pods"), self.logs(), file=sys.stderr)
            raise

    def pod(self) -> dict[str, Any]:
        """Return the pod as the API server has it."""
        found = self.node.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
        (pod,) = (pod for pod in found if "deletionTimestamp" not in pod["metadata"])
        assert isinstance(pod, dict)
        return pod

    def container(self, name: str) -> dict[str, Any]:
        """Return the status of one container."""
        statuses = self.pod()["status"].get("containerStatuses", ())
        return next((status for status in statuses if status["name"] == name), {})

    def logs(self) -> str:
        """Return what both containers said last."""
        chosen = ("--all-containers", "--tail=25", "--prefix", "--selector=app.kubernetes.io/name=nodeagent")
        done = self.node.attempt(["kubectl", "logs", f"--namespace={NAMESPACE}", *chosen])
        return done.stdout + done.stderr

    def process(self, container: str) -> str:
        """Return the container's first process, as the node has it."""
        wanted = self.container(container)["containerID"].rpartition("/")[2]
        tasks = self.node.run(["ctr", "--namespace=k8s.io", "tasks", "list"]).splitlines()
        (pid,) = (line.split()[1] for line in tasks if line.startswith(wanted))
        return pid

    def kernel_says(self, container: str) -> dict[str, str]:
        """Return ``/proc/PID/status`` of the container's first process."""
        lines = self.node.run(["cat", f"/proc/{self.process(container)}/status"]).splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def kill(self, container: str) -> None:
        """Kill the container's process, and wait until another one is ready."""
        before = self.container(container)["restartCount"]
        self.node.run(["kill", "-9", self.process(container)])
        self.wait(lambda: self.container(container).get("restartCount") == before + 1)
        self.wait(lambda: all(self.container(name).get("ready") for name in ("agent", "programmer")))

    def give(self, *capabilities: str) -> None:
        """Let the programmer have these capabilities."""
        patch = {"name": "programmer", "securityContext": {"capabilities": {"add": list(capabilities)}}}
        body = {"spec": {"template": {"spec": {"containers": [patch]}}}}
        self.kubectl("patch", "daemonset", "nodeagent", "--type=strategic", f"--patch={json.dumps(body)}")


def make_image() -> str:
    """Build the image, unless it is there; return where it is.  NODEAGENT_IMAGE names one that was built before."""
    made = subprocess.run([CHECKOUT / "daemonset/image/make", "image"], stdout=subprocess.PIPE, text=True, check=True)
    return made.stdout.strip()


@pytest.fixture(scope="module")
def installed(cluster: Cluster | ForeignCluster) -> Iterator[DaemonSet]:
    """Build the image, install the chart; at the end uninstall as `docs` say, and look that nothing is left."""
    if isinstance(cluster, ForeignCluster):
        pytest.skip("needs the node itself, which a kubeconfig does not give")
    cluster.import_image(Path(os.environ.get("NODEAGENT_IMAGE") or make_image()))
    config = "--set-json=config=" + json.dumps({"mode": "observe", "kubernetes": {"startJitterSeconds": 0}})
    manifest = render(helm(), *OURS, "--set=namespace.create=true", "--set=image.pullPolicy=Never", config)
    running = DaemonSet(cluster)
    cluster.kubectl("apply", "--filename=-", stdin=manifest)
    try:
        running.roll_out()
        yield running
        uninstall = render(helm(), *OURS, "--set=image.pullPolicy=Never", "--set=uninstall.enabled=true")
        cluster.kubectl("apply", "--filename=-", stdin=uninstall)
        running.roll_out()
        left = cluster.run(["find", "/sys/fs/bpf", "/run/nodeagent", "-mindepth", "1", "!", "-name", "*.debug"])
        assert left == "", "but for what the kernel has in every BPF file system"
    finally:
        cluster.kubectl("delete", "--wait", "--filename=-", stdin=manifest)


@pytest.fixture
def daemonset(installed: DaemonSet) -> DaemonSet:
    installed.roll_out()
    return installed


@pytest.fixture
def far(pods: Pods) -> Pod:
    """Return a pod, not ours, that says "direct" to whoever reaches it."""
    return pods.run("far", "python3", "-c", ANSWERS, str(PORT), "direct", container=listening(PORT))


def test_pods_are_intercepted_and_counted(daemonset: DaemonSet, pods: Pods, far: Pod) -> None:
    web = run_web(pods, intercept="enabled")
    daemonset.settle(web)
    assert dial(web, far) == {"proxy"}
    daemonset.wait(lambda: daemonset.flows(web, "intercepted") == len(far.addresses))
    annotate(web, excludeOutboundPorts=str(PORT))
    daemonset.wait(lambda: daemonset.status(web).get("in_sync") and dial(web, far) == {"direct"})
    daemonset.wait(lambda: daemonset.flows(web, "bypassed") >= len(far.addresses))


# ── who they are ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_agent_is_nobody_and_can_do_nothing(daemonset: DaemonSet) -> None:
    says = daemonset.kernel_says("agent")
    assert set(says["Uid"].split()) == set(says["Gid"].split()) == {str(AGENT_UID)}
    assert {int(says[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {0}
    assert (says["NoNewPrivs"], says["Seccomp"]) == ("1", "2")
    assert int(says["NSpid"].split()[-1]) == 1, "it sees no process of the node"
    mounts = daemonset.node.run(["cat", f"/proc/{daemonset.process('agent')}/mounts"])
    places = {line.split()[1]: line.split()[3].split(",")[0] for line in mounts.splitlines()}
    assert places["/run/seam"] == places["/host/cgroup"] == places["/"] == "ro"
    assert not {"/host/proc", "/sys/fs/bpf"} & places.keys()


def test_the_programmer_has_its_capabilities_no_token_and_no_network(daemonset: DaemonSet) -> None:
    says = daemonset.kernel_says("programmer")
    wanted = sum(1 << number for number in NEEDED.values())
    assert {int(says[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {wanted}
    assert (says["NoNewPrivs"], says["Seccomp"]) == ("1", "2")
    assert int(says["NSpid"].split()[-1]) == 1
    process = daemonset.process("programmer")
    devices = daemonset.node.run(["cat", f"/proc/{process}/net/dev"]).splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]
    mounts = daemonset.node.run(["cat", f"/proc/{process}/mounts"])
    places = {line.split()[1]: line.split()[3].split(",")[0] for line in mounts.splitlines()}
    assert places["/"] == places["/host/proc"] == places["/host/cgroup"] == "ro"
    assert not [place for place in places if "serviceaccount" in place]


# ── killed under traffic ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("container", ["agent", "programmer"])
def test_a_container_that_is_killed_under_traffic_loses_nothing(
    daemonset: DaemonSet, pods: Pods, far: Pod, container: str
) -> None:
    """No connection is refused, reset or goes direct, and each is counted, once."""
    web = run_web(pods, intercept="enabled")
    daemonset.settle(web)
    command = ["kubectl", "exec", f"--namespace={pods.namespace}", web.name, "--", "python3", "-c", LOAD]
    given = [",".join(far.addresses), str(PORT), str(SECONDS)]
    with subprocess.Popen(
        [*daemonset.node.enter, *command, *given],
        env=daemonset.node.environment,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    ) as load:
        daemonset.wait(lambda: daemonset.flows(web, "intercepted") > 0)
        daemonset.kill(container)
        said, _ = load.communicate(timeout=PATIENCE)
    answers = Counter(json.loads(said))
    assert set(answers) == {"proxy"}, answers
    daemonset.wait(lambda: daemonset.flows(web, "intercepted") >= answers.total())
    assert daemonset.flows(web, "intercepted") == answers.total()
    annotate(web, excludeOutboundPorts=str(PORT))  # and what is new takes effect again
    daemonset.wait(lambda: dial(web, far) == {"direct"})


# ── each capability is needed ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def reduced(daemonset: DaemonSet) -> Iterator[DaemonSet]:
    """Let a test take capabilities away; they are back afterwards."""
    yield daemonset
    daemonset.give(*NEEDED)
    daemonset.roll_out()


def without(name: str) -> tuple[str, ...]:
    return tuple(sorted(NEEDED.keys() - {name}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [("SYS_ADMIN", "no network namespace for us"), ("SYS_PTRACE", "give us SYS_PTRACE")],
)
def test_without_it_the_programmer_says_so_and_the_agent_waits(reduced: DaemonSet, name: str, says: str) -> None:
    reduced.give(*without(name))
    reduced.wait(lambda: says in reduced.logs())
    reduced.wait(lambda: "no programmer at" in reduced.logs(), reduced.logs)
    assert not reduced.container("agent")["ready"]


@pytest.mark.slow
def test_without_net_admin_no_pod_is_programmed(reduced: DaemonSet, pods: Pods) -> None:
    reduced.give(*without("NET_ADMIN"))
    web = run_web(pods, intercept="enabled")
    reduced.wait(lambda: "ermi" in reduced.status(web).get("detail", ""), lambda: reduced.status(web))  # not permitted
    assert not reduced.status(web)["in_sync"]


@pytest.mark.slow
def test_without_net_broadcast_changes_of_rules_are_not_heard_of(reduced: DaemonSet) -> None:
    reduced.give(*without("NET_BROADCAST"))
    reduced.wait(lambda: "the kernel does not tell of nft changes" in reduced.logs())


@pytest.mark.slow
def test_net_raw_is_for_legacy_rules(reduced: DaemonSet, pods: Pods, far: Pod) -> None:
    """With it they are written; without it nft's still are, and legacy's are refused."""
    reduced.give(*without("NET_RAW"))
    reduced.kubectl("rollout", "status", "daemonset/nodeagent", f"--timeout={PATIENCE:.0f}s")
    web = run_web(pods, intercept="enabled")
    reduced.settle(web)
    assert dial(web, far) == {"proxy"}
    words = ("exec", "daemonset/nodeagent", "--container=programmer", "--", "nodeagent", "doctor", "-o", "json")
    doctor = reduced.node.attempt(["kubectl", f"--namespace={NAMESPACE}", *words])
    (legacy,) = (found for found in json.loads(doctor.stdout) if found["what"] == "backend legacy")
    assert not legacy["ok"]


def test_the_plain_manifests_say_the_same_of_the_containers() -> None:
    text = (HOME / "nodeagent.yaml").read_text()
    assert f"add: [{', '.join(NEEDED)}]" in text
    assert PROXY_PORT == 15001
