"""A network namespace of the lab, seen from the test process, which never enters it."""

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.lab.process import LabError, LabProcess

_PATIENCE = 60.0


class Netns:
    """A network namespace with nothing but `lo` (up) in it; it vanishes with `close`, or with this process.

    No firewall rule, no route and no connection tracking is in it until somebody asks for it.
    """

    def __init__(self, *, user_namespace: bool = False) -> None:
        """Make it; with *user_namespace* as for a pod with hostUsers: false, where root alone is mapped."""
        within = ("unshare", "--user", "--map-root-user", "--") if user_namespace else ()
        self._holder = LabProcess("tests.lab.holder", within=within)
        try:
            lock, _ = self._holder.call("lock")
        except BaseException:
            self.close()
            raise
        self.environment = {**os.environ, "XTABLES_LOCKFILE": f"/proc/{self.pid}/fd/{lock}"}
        """The environment for commands in here: iptables' lock file is a file in the holder's memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the holder; sockets that are still open keep the namespace, but nobody can reach it."""
        self._holder.close()

    @property
    def pid(self) -> int:
        """The holder's process id: a process that lives in the namespace, for `--pid` and for cgroups."""
        return self._holder.pid

    @property
    def path(self) -> str:
        """The path that names the namespace, for `--netns`."""
        return f"/proc/{self.pid}/ns/net"

    def wait_for(self, pid: int) -> None:
        """Wait until the process *pid*, which has been started by way of `enter`, lives in here."""
        deadline = time.monotonic() + _PATIENCE
        while Path(f"/proc/{pid}/ns/net").readlink() != Path(self.path).readlink():
            if time.monotonic() > deadline:
                raise LabError(f"process {pid} never entered {self.path}")
            time.sleep(0.005)

    @property
    def inode(self) -> int:
        """The namespace's inode number; it is reused once the namespace has gone."""
        return Path(self.path).stat().st_ino

    @property
    def enter(self) -> tuple[str, ...]:
        """The words to put before a command so that it runs in here; append `--mount` to taste, then the command."""
        return ("nsenter", f"--net={self.path}")

    def socket(  # noqa: PLR0913  # whose it is, in names
        self, family: int, kind: int, protocol: int = 0, *, uid: int = 0, gid: int = 0, cgroup: str | None = None
    ) -> socket.socket:
        """Return an ordinary socket that lives in here and belongs to *uid*, *gid* and *cgroup*, whoever uses it."""
        owner = {"uid": uid, "gid": gid, "cgroup": cgroup}
        _, [descriptor] = self._holder.call("socket", **owner, kind=[family, kind, protocol])
        return socket.socket(fileno=descriptor)

    def run(self, command: Sequence[str], stdin: str | None = None, *, uid: int = 0, gid: int = 0) -> str:
        """Run *command* in here as *uid* and *gid*; return what it printed; LabError if it failed.

        iptables takes a lock file of this namespace's own, never the machine's.
        """
        done = self.attempt(command, stdin, uid=uid, gid=gid)
        if done.returncode:
            what = f"{' '.join(command)} ended with {done.returncode}"
            raise LabError(f"{what}: {done.stderr.strip()}\n{_numbered(stdin)}")
        return done.stdout

    def attempt(
        self, command: Sequence[str], stdin: str | None = None, *, uid: int = 0, gid: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Like `run`, for a command that may fail: its exit code and its messages are in what is returned."""
        # Also as root: nsenter leaves the groups alone unless it is told.
        drop = (f"--setuid={uid}", f"--setgid={gid}") if uid or gid else ()
        return subprocess.run(
            [*self.enter, *drop, "--", *command],
            input="" if stdin is None else stdin,
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
        )

    def ip(self, batch: str) -> None:
        """Run the lines of *batch* with one `ip -batch`."""
        self.run(["ip", "-batch", "-"], batch)

    def nft(self, ruleset: str) -> None:
        """Apply *ruleset*, in nft's own language, as one transaction."""
        self.run(["nft", "-f", "-"], ruleset)

    def sysctl(self, name: str) -> str:
        """Return this namespace's value of *name*, such as `net/ipv4/ip_forward`."""
        value, _ = self._holder.call("sysctl", name=name)
        return str(value)

    def set_sysctls(self, values: Mapping[str, str]) -> None:
        """Set sysctls of this namespace; only names below `net/` belong to it, any other is refused."""
        if strangers := [name for name in values if not name.startswith("net/") or ".." in name]:
            raise ValueError(f"not a sysctl of a network namespace: {', '.join(strangers)}")
        self._holder.call("set_sysctls", values=dict(values))


def _numbered(text: str | None) -> str:
    return "\n".join(f"{number:4}  {line}" for number, line in enumerate((text or "").splitlines(), 1))
