"""``support``: what a maintainer asks for, in one archive, without secrets.

In a container without privileges, what takes them is named as missing; ``kubectl nodeagent support`` asks the other
container for it, and adds logs.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

from nodeagent import __version__
from nodeagent.cli.archive import Entry, Item, Keep, as_json, read_file, write_archive
from nodeagent.cli.capabilities import missing_capabilities
from nodeagent.cli.client import ask, ask_flows, fetch
from nodeagent.cli.output import print_json, print_table, print_warning, say
from nodeagent.errors import InputError, KernelError, UnreachableError

_SECONDS: Final = 90.0
_MOST_PINS: Final = 2000
_MOST_PODS: Final = 100
"""Pods whose rules are told in full, those that are not as they should be first."""
_SYSTEM: Final = {
    "os-release": "/etc/os-release",
    "cmdline": "/proc/cmdline",
    "mounts": "/proc/self/mounts",
    "status": "/proc/self/status",
    "lsm": "/sys/kernel/security/lsm",
    "lockdown": "/sys/kernel/security/lockdown",
    "memory": "/proc/meminfo",
}
_UNIT: Final = "nodeagent"
_LOG_LINES: Final = 5000


def run_support(arguments: argparse.Namespace) -> int:
    """Write the archive; 5 if no agent answered, because then half of it is missing."""
    folder = f"nodeagent-support-{platform.node()}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    entries = save(arguments, folder, items(arguments))
    return UnreachableError.exit_code if any(e.error for e in entries if e.name == "agent/status.json") else 0


def save(arguments: argparse.Namespace, folder: str, found: Iterator[Item]) -> list[Entry]:
    """Write *found* to where the arguments say, tell what is missing, and return what became of each.

    Raises:
        InputError: it cannot be written there.
    """
    path = arguments.filename or f"{folder}.tar.gz"
    if path == "-":
        entries = write_archive(sys.stdout.buffer, folder, found)
    else:
        with _created(path) as file:
            entries = write_archive(file, folder, found)
    for entry in entries:
        if entry.error:
            print_warning(f"{entry.name}: {entry.error}")
    if path != "-" and arguments.output == "json":
        print_json({"file": path, "bytes": Path(path).stat().st_size})
    elif path != "-":
        print_table([(entry.name, entry.size, "cut" if entry.is_cut else "") for entry in entries if not entry.error])
        say(f"{path}: {Path(path).stat().st_size} bytes; it names pods and addresses: look into it before you send it")
    return entries


def _created(path: str) -> BinaryIO:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}: name another file with -f, or - for standard output") from None
    return os.fdopen(descriptor, "wb")


def items(arguments: argparse.Namespace) -> Iterator[Item]:
    """Yield what there is to collect here."""
    yield Item("about.json", about)
    yield from agent_items(arguments.api, arguments.metrics, with_flows=arguments.flows)
    yield Item("doctor.json", partial(_doctor, arguments))
    for name, path in _SYSTEM.items():
        yield Item(f"system/{name}", partial(read_file, Path(path)))
    yield Item("bpf/pins.txt", partial(_pins, Path(arguments.bpffs)))
    yield Item("log.txt", _log, Keep.TAIL)


def about() -> bytes:
    """Return which version runs on what."""
    return as_json(
        {
            "version": __version__,
            "python": sys.version,
            "kernel": platform.release(),
            "kernel_version": platform.version(),
            "machine": platform.machine(),
            "node": platform.node(),
            "cpus": os.cpu_count(),
            "uid": os.geteuid(),
            "collected_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    )


def agent_items(api: str, metrics: str, *, with_flows: bool) -> Iterator[Item]:
    """Yield what the agent itself says, at its inner listener *api* and its open one *metrics*."""
    yield Item("agent/status.json", lambda: as_json(ask(api, "/api/v1/pods")))
    yield Item("agent/config.json", lambda: as_json(ask(api, "/api/v1/config")))
    yield Item("agent/rules.json", lambda: as_json(_rules(api)))
    yield Item("agent/ready.json", lambda: fetch(metrics, "/readyz"))
    yield Item("agent/metrics.txt", lambda: fetch(metrics, "/metrics"))
    if with_flows:
        yield Item("agent/flows.json", lambda: as_json(ask_flows(api, {})))


def _rules(api: str) -> dict[str, Any]:
    """Return the rule sets of pods, those first that are not as they should be."""
    pods = ask(api, "/api/v1/pods")["pods"]
    pods.sort(key=lambda pod: (pod["in_sync"] is not False, pod["namespace"], pod["pod"]))
    asked = [pod for pod in pods if pod["ruleset_id"] or pod["in_sync"] is False][:_MOST_PODS]
    names = [f"{pod['namespace']}/{pod['pod']}" for pod in asked]
    return {name: ask(api, f"/api/v1/pods/{name}") for name in names}


def _doctor(arguments: argparse.Namespace) -> bytes:
    if "SYS_ADMIN" in missing_capabilities():
        raise InputError("takes privileges: in a cluster, run `nodeagent doctor` in the container of the programmer")
    words = ["doctor", "--output=json", f"--state-dir={arguments.state_dir}", f"--bpffs={arguments.bpffs}"]
    words += [f"--api={arguments.api}"]
    words += [f"--cgroup={arguments.cgroup}"] if arguments.cgroup else []
    done = _run([sys.executable, "-m", "nodeagent", *words])
    json.loads(done.stdout or b"null")  # its exit code says whether pods can be programmed, which is no failure of ours
    if not done.stdout:
        raise KernelError(done.stderr.decode(errors="replace").strip())
    return done.stdout


def _pins(bpffs: Path) -> bytes:
    """Return the names of what is pinned."""
    if not bpffs.is_dir():
        raise InputError(f"{bpffs} is not there")
    found = sorted(str(path) for path in bpffs.rglob("*"))
    return "".join(f"{path}\n" for path in found[:_MOST_PINS]).encode()


def _log() -> bytes:
    """Return what the journal has of a unit of our name."""
    done = _run(["journalctl", f"--unit={_UNIT}", f"--lines={_LOG_LINES}", "--no-pager", "--output=short-iso"])
    if done.returncode:
        raise InputError(done.stderr.decode(errors="replace").strip())
    return done.stdout


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise KernelError(f"{command[0]}: no answer in {_SECONDS:.0f} s") from None
