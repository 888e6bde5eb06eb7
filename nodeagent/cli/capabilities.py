"""What a programmer may have to be allowed, and what we are, as the kernel has it.

The one list: the chart, docs/operations.md and the tests are held against it.  On a cluster each is taken away once,
and something fails (tests/cluster_tests/product/test_privileges.py).  BPF and PERFMON, which counting takes, are not in
it: to the kernel, who holds SYS_ADMIN holds them.
"""

from pathlib import Path
from typing import Final, NamedTuple


class Capability(NamedTuple):
    """One of ``linux/capability.h``, and what is not done without it."""

    number: int
    why: str


CAPABILITIES: Final = {
    "NET_ADMIN": Capability(12, "to write rules, and to attach the programs that count"),
    "NET_BROADCAST": Capability(11, "to hear at once of rules that change; without it, by looking"),
    "NET_RAW": Capability(13, "backend legacy: the kernel shows its tables to who may open raw sockets"),
    "SYS_ADMIN": Capability(21, "to enter network namespaces, and to load programs"),
    "SYS_PTRACE": Capability(19, "to open the network namespace of a process with another uid"),
}
"""Those that a programmer needs, by name."""


def missing_capabilities() -> list[str]:
    """Return which of :data:`CAPABILITIES` we do not have."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    held = int(next(line for line in status.splitlines() if line.startswith("CapEff:"))[7:], 16)
    return [name for name, needed in CAPABILITIES.items() if not held >> needed.number & 1]
