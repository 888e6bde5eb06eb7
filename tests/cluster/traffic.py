"""Pods whose connections say who took them, and a load that goes on whatever becomes of the cluster's components.

The far side answers each line with the port that the connection came from: if that is the dialler's own, nobody was in
between.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from tests.cluster.client import Cluster
from tests.cluster.pods import Pod, Pods, listening
from tests.cluster.surroundings import HOST

PORTS: Final = (8080, 9090)
PROXY_PORT: Final = 15001
PATIENCE: Final = 120.0

ANSWERS = """
import socketserver, sys, threading
class Answer(socketserver.StreamRequestHandler):
    def handle(self):
        for _ in self.rfile:
            self.wfile.write((sys.argv[1] or str(self.client_address[1])).encode() + b"\\n")
class Server(socketserver.ThreadingTCPServer):
    address_family, allow_reuse_address, daemon_threads, request_queue_size = 10, True, True, 128
for port in sys.argv[2:]:
    threading.Thread(target=Server(("::", int(port)), Answer).serve_forever).start()
"""
DIALS = """
import json, socket, sys
said = {}
for to in json.loads(sys.argv[1]):
    try:
        with socket.create_connection(to, 10) as sock:
            sock.sendall(b"\\n")
            answer = sock.makefile().readline().strip()
            known = {"": "end", "proxy": "proxy", str(sock.getsockname()[1]): "direct"}
            said[to[0], to[1]] = known.get(answer, "proxy")
    except OSError as error:
        said[to[0], to[1]] = type(error).__name__
print(json.dumps([[*to, who] for to, who in said.items()]))
"""
LOAD = """
import collections, json, os, socket, sys, time
folder, addresses, port = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3])
fresh, held, kept, told = collections.Counter(), collections.Counter(), {}, 0.0
def ask(sock):
    sock.sendall(b"\\n")
    return sock.recv(64).decode().strip() or "end"
def attempt(count, call):
    try:
        count[call()] += 1
    except OSError as error:
        count[repr(error)] += 1
def dial(address):
    with socket.create_connection((address, port), 20) as sock:
        return ask(sock)
def tell(state):
    with open(folder + "/load.new", "w") as file:
        json.dump({"state": state, "fresh": fresh, "held": held}, file)
    os.rename(folder + "/load.new", folder + "/load")
for address in addresses:
    kept[address] = socket.create_connection((address, port), 20)
while True:
    if os.path.exists(folder + "/pause"):
        tell("paused")
        while os.path.exists(folder + "/pause"):
            time.sleep(0.02)
    for address in addresses:
        attempt(fresh, lambda: dial(address))
        attempt(held, lambda: ask(kept[address]))
    if time.monotonic() > told + 0.2:
        tell("running")
        told = time.monotonic()
    time.sleep(0.02)
"""


def run_far(pods: Pods, *ports: int, name: str = "far") -> Pod:
    """Run a pod, not ours, that answers with the port that a connection came from."""
    command = ("python3", "-c", ANSWERS, "", *map(str, ports or PORTS))
    return pods.run(name, *command, container=listening((ports or PORTS)[0]))


def dial(pod: Pod, to: Sequence[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Return who took each connection of *pod*: ``proxy``, ``direct``, or the error's name."""
    said = json.loads(pod.exec("python3", "-c", DIALS, json.dumps(to)))
    return {(address, port): who for address, port, who in said}


class Load:
    """A pod that dials without end, and keeps one connection of each family open; its proxy is a program that answers.

    It tells by a file, so it needs no component of the cluster.
    """

    def __init__(self, node: Cluster, pods: Pods, far: Pod) -> None:
        self._node, self._folder = node, node.directory / "load"
        self._folder.mkdir(exist_ok=True)
        self._folder.chmod(0o777)
        shared = str(HOST / "load")
        proxy = {"name": "main", "image": node.image, "command": ["python3", "-c", ANSWERS, "proxy", str(PROXY_PORT)]}
        addresses = ",".join(far.addresses)
        load = {
            "name": "load",
            "image": node.image,
            "command": ["sh", "-c", 'until [ -e "$0/go" ]; do sleep 0.1; done; exec python3 -c "$@"', shared],
            "args": [LOAD, shared, addresses, str(PORTS[0])],
            "volumeMounts": [{"name": "load", "mountPath": shared}],
        }
        self.pod = pods.run(
            "web",
            container={**proxy, **listening(PROXY_PORT), "securityContext": {"runAsUser": 1337, "runAsGroup": 1337}},
            annotations={"nodeagent.io/intercept": "enabled"},
            beside=[load],
            volumes=[{"name": "load", "hostPath": {"path": shared}}],
        )

    def __enter__(self) -> Self:
        (self._folder / "go").touch()
        self.wait(lambda said: said["fresh"])
        return self

    def __exit__(self, *_: object) -> None:
        self.pod.delete()
        for file in self._folder.iterdir():
            file.unlink()

    def goes_on(self, rounds: int = 25) -> None:
        """Wait until it has dialled that often again."""
        before = Counter(self.said()["fresh"]).total()
        self.wait(lambda said: Counter(said["fresh"]).total() >= before + 2 * rounds)

    def paused(self) -> dict[str, Any]:
        """Return what it has seen so far, and let it dial no more until `resume`."""
        (self._folder / "pause").touch()
        return self.wait(lambda said: said["state"] == "paused")

    def resume(self) -> None:
        """Let it go on."""
        (self._folder / "pause").unlink(missing_ok=True)
        self.wait(lambda said: said["state"] == "running")

    def said(self) -> dict[str, Any]:
        """Return what it has told last."""
        file = Path(self._folder, "load")
        found: dict[str, Any] = (
            json.loads(file.read_text()) if file.exists() else {"state": "", "fresh": {}, "held": {}}
        )
        return found

    def wait(self, holds: Any) -> dict[str, Any]:  # noqa: ANN401  # a predicate
        """Wait until what it tells *holds*."""
        deadline = time.monotonic() + PATIENCE
        while not holds(said := self.said()):
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        return said
