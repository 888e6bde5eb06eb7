"""A child that holds a LegacyBackend and goes where it is told: one JSON request a line, one answer a line.

It has a mount namespace of its own with a BPF file system at the usual place, and begins in an empty netns.
"""

import json
import os
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nodeagent import errors
from nodeagent.bpf.lpm import unpin_all
from nodeagent.compile import compile_policy
from nodeagent.compile.legacy import DEFAULT_BPFFS
from nodeagent.legacy import LegacyBackend
from nodeagent.legacy.entries import masked
from nodeagent.legacy.xtables import Kernel, table_names
from nodeagent.model import BackendName, Family, Policy, Program, Ranges, Sourced
from nodeagent.netns.kernel import set_netns, unshare_netns
from nodeagent.plan import make_plan
from tests.cases.policies import POLICIES, scattered

CHECKOUT = Path(__file__).resolve().parents[2]
_SETTLE = f'mount -t "$0" "$0" {DEFAULT_BPFFS} && exec "$@"'


def policy_of(name: str) -> Policy:
    """Return the policy of that name; ``scattered:N`` excludes N ranges of each family."""
    if not name.startswith("scattered:"):
        return POLICIES[name]
    number = int(name.partition(":")[2])
    networks = (*scattered(number, "10.0.0.0/28"), *scattered(number, "2001:db8::/64"))
    return Policy(exclude_ranges=Ranges(tuple(Sourced(ip_network(network), "case") for network in networks)))


class Driver:
    """The test's side: every verb of the backend, and what the tests ask beyond it."""

    def __init__(self, lock: Path, file_system: str = "bpf") -> None:
        self.lock = lock
        settle = ("sh", "-c", _SETTLE, file_system, sys.executable, "-m", "tests.kernel.legacy_driver")
        self._child = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "--", *settle],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "XTABLES_LOCKFILE": str(lock), "PYTHONPATH": str(CHECKOUT)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.communicate()

    @property
    def pid(self) -> int:
        """The child, whose mount namespace has the pinned programs."""
        return self._child.pid

    def __call__(self, verb: str, *arguments: object) -> Any:  # noqa: ANN401  # JSON
        """Ask, wait, return the answer; raise what the child raised."""
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.write(json.dumps([verb, *arguments]).encode() + b"\n")
        self._child.stdin.flush()
        answer = json.loads(self._child.stdout.readline())
        if "error" in answer:
            kind = getattr(errors, answer["error"])
            refused = (errors.Refusal.OTHER_TOOL,) if kind is errors.RefusedError else ()  # a backend knows no other
            raise kind(answer["message"], *refused)
        return answer["result"]


class Served:
    """The child's side."""

    def __init__(self) -> None:
        self.backend = LegacyBackend()
        self.programs: dict[str, Program] = {}

    def enter(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        set_netns(descriptor)
        os.close(descriptor)

    def program(self, policy: str) -> Program:
        if policy not in self.programs:
            self.programs[policy] = self.backend.encode(compile_policy(policy_of(policy)))
        return self.programs[policy]

    def encode(self, policy: str) -> str:
        return self.program(policy).ruleset_id

    def write(self, *policies: str) -> None:
        for policy in policies:
            self.backend.write(self.program(policy), self.backend.read().state)

    def differs(self, policy: str) -> list[str]:
        reading = self.backend.read()
        return [str(change) for change in make_plan(self.program(policy), reading, BackendName.LEGACY).changes]

    def read(self, proxy_port: int | None = None) -> dict[str, Any]:
        reading = self.backend.read(proxy_port)
        chains = reading.state.chains if reading.state else {}
        return {
            "chains": {name: [rule.text for rule in rules] for name, rules in chains.items()},
            "id": reading.ruleset_id,
            "ahead": reading.ahead,
            "foreign": reading.foreign,
            "in_use": reading.in_use,
        }

    def stop(self) -> None:
        self.backend.stop()

    def remove(self) -> None:
        self.backend.remove()

    def available(self) -> str | None:
        return self.backend.available()

    def tables(self) -> dict[str, str]:
        """Return the masked bytes of each table that exists."""
        found = {}
        for family in Family:
            for name in table_names(family):
                with Kernel(family) as kernel:
                    found[f"{family} {name}"] = masked(kernel.read(name)).entries.hex()
        return dict(sorted(found.items()))

    def descriptors(self) -> int:
        return len(tuple(Path("/proc/self/fd").iterdir()))

    def write_stale(self, policy: str) -> None:
        """Write what was encoded before the pinned programs went."""
        program = self.program(policy)
        self.unpin()
        self.backend.write(program, None)

    def pins(self) -> list[str]:
        return sorted(path.name for path in Path(DEFAULT_BPFFS, "nodeagent").glob("*"))

    def unpin(self) -> None:
        unpin_all(Path(DEFAULT_BPFFS))
        self.programs.clear()


def main() -> None:
    """Serve until standard input ends."""
    unshare_netns()
    served = Served()
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        try:
            answer = {"result": getattr(served, verb)(*arguments)}
        except errors.NodeagentError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
