"""nodeagent as its users install it, on the cluster of the tests: the image, the chart, the plugin."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from daemonset.packaging.schema import CHART
from nodeagent import __version__
from tests.cluster import Cluster
from tests.cluster.build import helm

NAMESPACE: Final = "nodeagent"
REPOSITORY: Final = "localhost/nodeagent"
CONFIGURATION: Final = f"/api/v1/namespaces/{NAMESPACE}/configmaps/nodeagent"
_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_PATIENCE: Final = 300.0
_AT_ONCE: Final = "kubernetes: {startJitterSeconds: 0}"
_SETTINGS: Final = ("image.repository=" + REPOSITORY, "config.kubernetes.startJitterSeconds=0")
"""What a cluster without a registry, and a test without a fleet, have their own way."""


@cache
def image() -> Path:
    """Return the archive of the image that ships; make it first if it is not there.

    NODEAGENT_IMAGE names another one.
    """
    if given := os.environ.get("NODEAGENT_IMAGE"):
        return Path(given)
    command = [str(_CHECKOUT / "daemonset/image/make"), "image"]
    accept = {**os.environ, "DRIFT": "accept"}  # Debian replaces packages every day, and keeps none
    return Path(subprocess.run(command, env=accept, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


class Product:
    """nodeagent on *node*: to be installed, asked, changed and uninstalled."""

    def __init__(self, node: Cluster) -> None:
        self.node = node

    def __enter__(self) -> Self:
        self.node.import_image(image())
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the cluster as it was, whatever a test has done or left undone."""
        self.node.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait")
        self.node.kubectl("delete", "clusterrole,clusterrolebinding,priorityclass", "nodeagent", "--ignore-not-found")
        self.node.run([sys.executable, "-m", "nodeagent", "uninstall", "--now"])

    # ── with Helm ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def make_namespace(self) -> None:
        """Make the namespace, labelled as docs/operations.md says."""
        self.node.kubectl("create", "namespace", NAMESPACE)
        self.node.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=privileged")

    def install(self, *settings: str) -> None:
        """Install the chart, and wait until every node's agent is ready."""
        self._helm("install", "nodeagent", str(CHART), *(f"--set={each}" for each in (*_SETTINGS, *settings)))
        self.wait_for_rollout()

    def upgrade(self, *settings: str) -> None:
        """Change *settings*, and wait until every node's pod is ready."""
        self.begin_upgrade(*settings)
        self.wait_for_rollout()

    def begin_upgrade(self, *settings: str) -> None:
        """Change *settings*."""
        given = (f"--set={each}" for each in settings)
        self._helm("upgrade", "nodeagent", str(CHART), "--reset-then-reuse-values", *given)

    def remove(self) -> None:
        """Remove what the chart has made of the cluster."""
        self._helm("uninstall", "nodeagent", "--wait", f"--timeout={_PATIENCE:.0f}s")

    def _helm(self, *words: str) -> None:
        self.node.run([str(helm()), *words, f"--namespace={NAMESPACE}"])

    def wait_for_rollout(self) -> None:
        """Wait until the DaemonSet is as it was last asked to be."""
        words = ("rollout", "status", "daemonset/nodeagent", f"--namespace={NAMESPACE}", f"--timeout={_PATIENCE:.0f}s")
        self.node.kubectl(*words)

    # ── without ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def apply(self, manifest: Path) -> None:
        """Apply a plain manifest, with the image that the cluster has, and wait until every node's pod is ready."""
        text = manifest.read_text()
        image, nothing = f'"nodeagent:{__version__}"', "# Every key has its default."
        assert image in text
        text = text.replace(image, f'"{REPOSITORY}:{__version__}"').replace(nothing, _AT_ONCE)
        self.node.kubectl("apply", "--filename=-", stdin=text)
        self.wait_for_rollout()

    # ── running ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def exec(self, *command: str, container: str = "agent") -> subprocess.CompletedProcess[str]:
        """Run *command* in the agent's pod."""
        words = ("exec", f"--namespace={NAMESPACE}", "daemonset/nodeagent", f"--container={container}", "--", *command)
        return self.node.attempt(["kubectl", *words])

    def plugin(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `kubectl nodeagent`, which kubectl finds along PATH."""
        path = f"{Path(sys.executable).parent}:{self.node.environment['PATH']}"
        return self.node.attempt(["env", f"PATH={path}", "kubectl", "nodeagent", *words])

    def configure(self, text: str) -> None:
        """Edit the ConfigMap, and have the kubelet bring it now, as docs/operations.md says."""
        self.node.api.patch(CONFIGURATION, {"data": {"config.yaml": f"{text}\n{_AT_ONCE}\n"}})
        words = ("annotate", "pods", f"--namespace={NAMESPACE}", "--selector=app.kubernetes.io/name=nodeagent")
        self.node.kubectl(*words, "--overwrite", f"configured={time.monotonic_ns()}")

    def wait(self, holds: Callable[[], object], what: Callable[[], object] = str) -> None:
        """Wait until *holds*; *what* tells how it was if it never does."""
        deadline = time.monotonic() + _PATIENCE
        while not holds():
            assert time.monotonic() < deadline, f"{what()}\n{self.logs()}"
            time.sleep(0.05)

    def logs(self, container: str = "") -> str:
        """Return the end of what *container* says, or both."""
        which = f"--container={container}" if container else "--all-containers"
        words = ("logs", "daemonset/nodeagent", f"--namespace={NAMESPACE}", which, "--tail=40")
        done = self.node.attempt(["kubectl", *words])
        return done.stdout + done.stderr

    # ── what is there of it ───────────────────────────────────────────────────────────────────────────────────────────

    def traces(self, pods: Sequence[Any]) -> list[str]:
        """Return what of ours is on the node: rules in the namespaces of *pods*, pins, programs, filters, files."""
        return [line for pod in pods for line in self.rules(pod)] + self._of_the_node()

    def rules(self, pod: Any) -> list[str]:  # noqa: ANN401  # tests.cluster.pods.Pod, of which one attribute matters
        """Return what of ours is among the rules in the namespace of *pod*."""
        (process, *_) = self.processes(pod.uid)
        inside = ["nsenter", f"--net=/proc/{process}/ns/net"]
        found = self.node.run([*inside, "nft", "list", "ruleset"]).splitlines()
        return [f"rule {pod.name}: {line}" for line in found if "nodeagent" in line.lower()]

    def processes(self, uid: str) -> list[str]:
        """Return the processes of the pod with this UID, as the node numbers them."""
        script = 'find /sys/fs/cgroup -path "*$1*" -name cgroup.procs -exec cat {} +'
        return self.node.run(["sh", "-c", script, "sh", uid]).split()

    def _of_the_node(self) -> list[str]:
        """Return pins, attached programs, tc filters and files of ours."""
        script = """
            find /sys/fs/bpf -mindepth 1 -path '*nodeagent*' | sed 's/^/pin /'
            find /run/nodeagent -mindepth 1 | sed 's/^/file /'
            for device in $(ls /sys/class/net); do
                for way in ingress egress; do tc filter show dev "$device" $way | sed "s/^/filter $device /"; done
            done
        """
        return self.node.run(["sh", "-c", script]).splitlines()
