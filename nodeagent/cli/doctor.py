"""What this kernel and node can do, and what is missing: found by trying, not by version.

Of an agent that runs here, also what it says is wrong: who asks a doctor wants to know all of it.
"""

import os
import platform
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from nodeagent.bpf.loader import Settings
from nodeagent.bpf.probe import probe
from nodeagent.cli.agent_arguments import DEFAULT_API
from nodeagent.cli.capabilities import CAPABILITIES, missing_capabilities
from nodeagent.cli.client import ask
from nodeagent.errors import NodeagentError, printable
from nodeagent.model import BackendName
from nodeagent.netns.kernel import socket_cookie
from nodeagent.nri import SOCKET_PATH
from nodeagent.runtime.cgroups import NETNS_PATH
from nodeagent.state.lock import holder


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing, whether it is there, and what its absence costs."""

    name: str
    good: bool
    detail: str
    fatal: bool = False

    @property
    def mark(self) -> tuple[str, str]:
        """Return a word and its style."""
        return ("ok", "good") if self.good else ("missing", "bad" if self.fatal else "warning")

    def as_json(self) -> dict[str, object]:
        """Return the finding for programs."""
        return {"what": self.name, "ok": self.good, "detail": self.detail, "fatal": self.fatal}


@dataclass(frozen=True, slots=True)
class Places:
    """Where the agent would keep its state, count and answer; no ``cgroup``: where cgroup v2 is mounted."""

    state: Path
    bpffs: Path
    cgroup: Path | None
    nri: Path = Path(SOCKET_PATH)
    netns: Path = Path(NETNS_PATH)
    api: str = DEFAULT_API


def examine(backends: Mapping[BackendName, str | None], places: Places) -> list[Finding]:
    """Return the findings; *backends* says why each cannot be used, from an empty namespace."""
    return [
        Finding("kernel", good=True, detail=platform.release()),
        *_capabilities(),
        *_backends(backends),
        _cookie(),
        *_libraries(),
        _state(places.state),
        *_counting(places),
        *_starts(places),
        *_agent(places),
    ]


def _capabilities() -> Iterator[Finding]:
    missing = missing_capabilities()
    detail = f"missing: {', '.join(missing)}" if missing else ", ".join(CAPABILITIES)
    yield Finding("capabilities", not missing, detail, fatal="SYS_ADMIN" in missing)


def _backends(backends: Mapping[BackendName, str | None]) -> Iterator[Finding]:
    none = all(backends.values())
    for name, reason in backends.items():
        detail = reason or "rules can be written and read back"
        yield Finding(f"backend {name}", not reason, detail, fatal=none)


def _cookie() -> Finding:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        cookie = socket_cookie(sock)
    detail = "namespaces are told apart for good" if cookie else "before Linux 5.14: by inode, which is reused"
    return Finding("netns cookie", cookie is not None, detail)


def _state(folder: Path) -> Finding:
    """Say whether what should outlive the agent could be written; the folder itself may have to be made."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    good = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    where = "" if there == folder else f" ({there})"
    cost = f"{folder} cannot be written{where}: counts would begin again when the agent restarts"
    return Finding("state", good, str(folder) if good else cost)


def _counting(places: Places) -> Iterator[Finding]:
    """Load all that counting loads, and let it go again: never what somebody else has compiled."""
    for found in probe(Settings(bpffs=places.bpffs, cgroup=places.cgroup)):
        cost = found.detail
        if found.name == "bpffs" and not found.works:
            cost += "; mount -t bpf bpf there: without it nothing is counted, and backend legacy takes 100 ranges"
        elif not found.works and found.essential:
            cost += "; without it nothing is counted"
        if found.name != "netns cookie":  # told above
            yield Finding(found.name, found.works, cost if not found.works else "can be had")


def _starts(places: Places) -> Iterator[Finding]:
    """Say what would tell of pods that start, and what that is worth (docs/starting.md)."""
    is_open = places.nri.is_socket() and os.access(places.nri, os.R_OK | os.W_OK)
    why = "is not there" if not places.nri.exists() else "may not be opened"
    yield Finding(
        "pods from nri",
        is_open,
        f"{places.nri}: the container runtime can wait until a pod's rules stand"
        if is_open
        else f"{places.nri} {why}: rules can only follow a pod's start",
    )
    yield Finding(
        "pods from namespaces",
        places.netns.is_dir(),
        f"{places.netns}: without NRI, rules stand milliseconds after a pod's sandbox"
        if places.netns.is_dir()
        else f"{places.netns} is not there: without NRI, rules stand once the API server knows a pod's address",
    )


def _agent(places: Places) -> Iterator[Finding]:
    """Pass on what an agent here says of itself; that none runs is no fault."""
    process = holder(places.state)
    name = f"process {process}" if process else "an agent"
    try:
        node = ask(places.api, "/api/v1/pods")["node"]
        troubles = [(str(found["condition"]), printable(str(found["message"]), 1024)) for found in node["troubles"]]
    except (NodeagentError, TypeError, KeyError) as error:
        if process:
            yield Finding(
                "agent", good=False, detail=f"{name} is at work here, and a second one refuses to start; {error}"
            )
        return
    yield Finding(
        "agent", good=bool(node["ready"]), detail=f"{name} is at work here, and answers at {printable(places.api)}"
    )
    for condition, message in troubles:
        yield Finding(f"agent: {condition}", good=False, detail=message)


def _libraries() -> Iterator[Finding]:
    for module, purpose in (("iptc", "encodes for backend legacy"), ("pyroute2", "encodes for backend nft")):
        yield Finding(module, find_spec(module) is not None, purpose)
    euid = os.geteuid()
    yield Finding("root", euid == 0, f"running as uid {euid}")
