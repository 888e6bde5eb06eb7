"""What we may do, as the kernel has it."""

from pathlib import Path

CAPABILITIES = {12: "NET_ADMIN", 13: "NET_RAW", 19: "SYS_PTRACE", 21: "SYS_ADMIN"}
"""Those that a programmer needs, by their numbers in ``linux/capability.h``."""


def missing_capabilities() -> list[str]:
    """Return which of :data:`CAPABILITIES` we do not have."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    held = int(next(line for line in status.splitlines() if line.startswith("CapEff:"))[7:], 16)
    return [name for bit, name in CAPABILITIES.items() if not held >> bit & 1]
