"""A real kube-apiserver and etcd, in a network namespace of their own, for what the agent says to them.

No node and no controllers: pods are what the tests write.  The programs are those that the test cluster is made of
(`make cluster-build`); their state is a temporary directory.  A test's own coroutine runs in a thread that has entered
the namespace, because nothing out here can reach it.
"""

import asyncio
import json
import secrets
import signal
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

from pyroute2 import netns

from nodeagent.kube.client import Client
from nodeagent.kube.credentials import Credentials
from tests.cluster.build import programs_directory
from tests.kube.scene import connected
from tests.lab import Netns

SERVER: Final = "https://127.0.0.1:6443"
ETCD: Final = "http://127.0.0.1:2379"
_ADDRESS: Final = "10.99.0.1"
_ACCOUNT: Final = "/api/v1/namespaces/default/serviceaccounts"
_PATIENCE: Final = 120.0

ROLE: Final = {
    "rules": [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
    ]
}
"""All that the agent may do."""


class ControlPlane:
    """Runs from `__enter__` to `__exit__`; `stop` and `start` end and begin single programs."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._programs = programs_directory()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._admin_token = secrets.token_hex()
        self.directory = Path()
        self.netns: Netns

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="control-plane-")))
            self.netns = stack.enter_context(Netns())
            stack.callback(self._stop_all)
            self.netns.ip(f"addr add {_ADDRESS}/32 dev lo")
            self._prepare()
            self.start("etcd")
            self.start("kube-apiserver")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -- programs -------------------------------------------------------------------------------

    def start(self, name: str, *more: str) -> None:
        """Start a program, with *more* flags than usual, and wait until it serves."""
        with (self.directory / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [*self.netns.enter, "--", str(self._programs / name), *self._flags(name), *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        health = f"{ETCD}/health" if name == "etcd" else f"{SERVER}/readyz"
        self.inside_thread(lambda: self._wait_for(name, health))

    def stop(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a program."""
        process = self._running.pop(name)
        process.send_signal(number)
        process.wait(_PATIENCE)

    def freeze(self, name: str) -> None:
        """Let a program neither answer nor go."""
        self._running[name].send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let it go on."""
        self._running[name].send_signal(signal.SIGCONT)

    def compact(self) -> None:
        """Let etcd forget the past."""
        status = self._etcd("/v3/maintenance/status", {})
        self._etcd("/v3/kv/compaction", {"revision": status["header"]["revision"], "physical": True})

    def audit(self, node: str = "") -> list[dict[str, Any]]:
        """Return what the server has noted last of each request so far, or of those about pods of *node* alone."""
        *lines, _unfinished = (self.directory / "audit.log").read_text().split("\n")
        entries = {entry["auditID"]: entry for entry in map(json.loads, lines)}
        return [entry for entry in entries.values() if node in entry["requestURI"]]

    # -- clients --------------------------------------------------------------------------------

    @property
    def admin(self) -> Credentials:
        """Credentials of somebody who may do anything."""
        return self.credentials(self._admin_token)

    def credentials(self, token: str) -> Credentials:
        """Return credentials with this *token*."""
        authority = (self.directory / "apiserver.crt").read_text()
        return Credentials(server=SERVER, authority=authority, authorization=f"Bearer {token}")

    async def agent_token(self, role: Mapping[str, object] = ROLE) -> str:
        """Return a token of a new service account that may do what *role* says."""
        name = f"agent-{secrets.token_hex(4)}"
        rbac = "/apis/rbac.authorization.k8s.io/v1"
        meta = {"metadata": {"name": name}}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
        subject = {"kind": "ServiceAccount", "name": name, "namespace": "default"}
        async with connected(self.admin) as client:
            await client.request("POST", _ACCOUNT, body=meta)
            await client.request("POST", f"{rbac}/clusterroles", body={**meta, **role})
            binding = {**meta, "roleRef": reference, "subjects": [subject]}
            await client.request("POST", f"{rbac}/clusterrolebindings", body=binding)
            answer = await client.request(
                "POST", f"{_ACCOUNT}/{name}/token", body={"spec": {"expirationSeconds": 3600}}
            )
        return str(json.loads(answer)["status"]["token"])

    def run(self, scene: Callable[[], Coroutine[None, None, None]]) -> None:
        """Run *scene* where the server can be reached."""
        self.inside_thread(lambda: asyncio.run(scene()))

    def inside_thread(self, work: Callable[[], None]) -> None:
        """Do *work* in a thread that has entered the namespace, and ends."""
        failed: list[BaseException] = []

        def enter() -> None:
            try:
                netns.setns(self.netns.path)
                work()
            except BaseException as error:  # noqa: BLE001  # raised again where somebody sees it
                failed.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]

    # -- inner things ---------------------------------------------------------------------------

    def _prepare(self) -> None:
        (self.directory / "tokens.csv").write_text(f'{self._admin_token},admin,admin,"system:masters"\n')
        (self.directory / "audit.json").write_text(
            json.dumps(
                {
                    "apiVersion": "audit.k8s.io/v1",
                    "kind": "Policy",
                    "omitStages": ["RequestReceived"],
                    "rules": [{"level": "Metadata"}],
                }
            )
        )
        key = str(self.directory / "accounts.key")
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)

    def _flags(self, name: str) -> list[str]:
        here = self.directory
        if name == "etcd":
            return [
                f"--data-dir={here}/etcd",
                f"--listen-client-urls={ETCD}",
                f"--advertise-client-urls={ETCD}",
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--unsafe-no-fsync=true",
                "--log-level=warn",
            ]
        return [
            f"--etcd-servers={ETCD}",
            f"--cert-dir={here}",
            "--bind-address=127.0.0.1",
            f"--advertise-address={_ADDRESS}",
            "--secure-port=6443",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={here}/accounts.key",
            f"--service-account-key-file={here}/accounts.key",
            "--authorization-mode=RBAC",
            f"--token-auth-file={here}/tokens.csv",
            "--disable-admission-plugins=ServiceAccount",
            f"--audit-policy-file={here}/audit.json",
            f"--audit-log-path={here}/audit.log",
        ]

    def _wait_for(self, name: str, url: str) -> None:
        anybody = ssl._create_unverified_context()  # noqa: S323  # its certificate is not there yet
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            headers = {"Authorization": f"Bearer {self._admin_token}"}
            request = urllib.request.Request(url, headers=headers)  # noqa: S310  # ours
            try:
                with urllib.request.urlopen(request, timeout=2, context=anybody):  # noqa: S310  # ours
                    return
            except OSError:
                assert self._running[name].poll() is None, self._tail(name)
                time.sleep(0.05)
        raise AssertionError(f"{name} does not serve: {self._tail(name)}")

    def _tail(self, name: str) -> str:
        return "\n".join((self.directory / f"{name}.log").read_text(errors="replace").splitlines()[-15:])

    def _etcd(self, path: str, body: Mapping[str, object]) -> Any:  # noqa: ANN401  # JSON
        found: list[Any] = []

        def ask() -> None:
            request = urllib.request.Request(ETCD + path, json.dumps(body).encode())  # noqa: S310  # ours
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  # ours
                found.append(json.load(answer))

        self.inside_thread(ask)
        return found[0]

    def _stop_all(self) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(_PATIENCE)


class Pods:
    """Writes pods, as somebody who may."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(self, pod: Mapping[str, object]) -> Any:  # noqa: ANN401  # JSON
        """Create a pod in the namespace `default`."""
        return json.loads(await self._client.request("POST", _PODS, body=pod))

    async def patch(self, name: str, patch: Mapping[str, object], part: str = "") -> None:
        """Patch a pod, or its *part* (`/status`)."""
        await self._client.request("PATCH", f"{_PODS}/{name}{part}", body=patch, kind="merge-patch+json")

    async def delete(self, name: str) -> None:
        """Delete a pod at once."""
        await self._client.request("DELETE", f"{_PODS}/{name}", {"gracePeriodSeconds": "0"})


_PODS: Final = "/api/v1/namespaces/default/pods"
