"""What this kernel and node can do, and what is missing: found by trying, not by version."""

import os
import platform
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from nodeagent.model import BackendName
from nodeagent.netns.kernel import socket_cookie

_CAPABILITIES = {12: "NET_ADMIN", 13: "NET_RAW", 19: "SYS_PTRACE", 21: "SYS_ADMIN"}
_BPFFS = "/sys/fs/bpf"


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


def examine(backends: Mapping[BackendName, str | None]) -> list[Finding]:
    """Return the findings; *backends* says why each cannot be used, from an empty namespace."""
    return [
        Finding("kernel", good=True, detail=platform.release()),
        *_capabilities(),
        *_backends(backends),
        _cookie(),
        _bpffs(),
        *_libraries(),
    ]


def _capabilities() -> Iterator[Finding]:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    held = int(next(line for line in status.splitlines() if line.startswith("CapEff:"))[7:], 16)
    missing = [name for bit, name in _CAPABILITIES.items() if not held >> bit & 1]
    detail = f"missing: {', '.join(missing)}" if missing else ", ".join(_CAPABILITIES.values())
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


def _bpffs() -> Finding:
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    mounted = any(line.split()[1:3] == [_BPFFS, "bpf"] for line in mounts)
    cost = f"mount -t bpf bpf {_BPFFS}: backend legacy needs it for more than 100 ranges"
    return Finding("bpffs", mounted, _BPFFS if mounted else cost)


def _libraries() -> Iterator[Finding]:
    for module, purpose in (("iptc", "encodes for backend legacy"), ("pyroute2", "encodes for backend nft")):
        yield Finding(module, find_spec(module) is not None, purpose)
    euid = os.geteuid()
    yield Finding("root", euid == 0, f"running as uid {euid}")
