"""Only proven namespaces are entered; nothing is left open; the host's is refused."""

import os
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodeagent.compile import compile_policy
from nodeagent.errors import InputError, KernelError, RefusedError
from nodeagent.model import Policy
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import Choice, Target
from tests.kernel.conftest import Pod
from tests.lab import Netns, Topology

pytestmark = pytest.mark.kernel

RULES = compile_policy(Policy())


def descriptors(pid: int) -> list[str]:
    """Return what a process has open, by number."""
    return sorted(entry.name for entry in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.parametrize("netns", ["/proc/self/ns/net", "/proc/1/ns/net", "/proc/thread-self/ns/net", 1, os.getpid()])
def test_the_hosts_namespace_is_refused(programmer: ChildProgrammer, netns: str | int) -> None:
    if netns == "/proc/self/ns/net":
        netns = f"/proc/{os.getpid()}/ns/net"  # the programmer's own is another
    if netns == "/proc/thread-self/ns/net":
        netns = f"/proc/{os.getpid()}/task/{os.getpid()}/ns/net"
    with pytest.raises(RefusedError, match="host's network namespace"):
        programmer.apply(Target(netns), RULES, Choice.AUTO)


def test_the_hosts_namespace_is_refused_under_another_name(programmer: ChildProgrammer, tmp_path: Path) -> None:
    link = tmp_path / "innocent"
    link.symlink_to("/proc/1/ns/net")
    with pytest.raises((RefusedError, KernelError), match=r"host's network namespace|permission denied"):
        programmer.apply(Target(str(link)), RULES, Choice.AUTO)


def test_the_kernels_first_namespace_is_refused_from_elsewhere(pod: Netns) -> None:
    """From inside another namespace, where "the one that I came from" is no help."""
    script = f"""
from nodeagent.errors import RefusedError
from nodeagent.netns.home import Home
home = Home()
try:
    with home.visit({os.getpid()}):
        print("entered")
except RefusedError as error:
    print(error)
"""
    assert "is the host's network namespace" in pod.run([sys.executable, "-c", script])


@pytest.mark.parametrize(
    "path", ["/nonexistent/ns", "/proc/self/ns/mnt", "/etc/passwd", "/", "/dev/null", "a\0b", "/proc/0/ns/net"]
)
def test_what_is_no_network_namespace_is_refused(programmer: ChildProgrammer, path: str) -> None:
    with pytest.raises(InputError, match="network namespace"):
        programmer.apply(Target(path), RULES, Choice.AUTO)


def test_a_fifo_in_the_way_does_not_block(programmer: ChildProgrammer, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(InputError, match="not a network namespace"):
        programmer.apply(Target(str(fifo)), RULES, Choice.AUTO)


def test_a_process_that_ended_is_refused(programmer: ChildProgrammer) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.raises(InputError, match=f"no process has PID {ended.pid}"):
        programmer.apply(Target(ended.pid), RULES, Choice.AUTO)


def test_a_namespace_is_found_by_a_process_in_it(programmer: ChildProgrammer, pod: Netns) -> None:
    assert programmer.apply(Target(pod.pid), RULES, Choice.NFT).found.plan
    assert not programmer.observe(Target(pod.path), RULES, Choice.NFT).plan


@pytest.mark.fault(16)
@pytest.mark.fault(21)
def test_a_namespace_without_the_pods_address_is_refused(programmer: ChildProgrammer, lab: Topology) -> None:
    own, other = ip_address("10.244.1.5"), ip_address("10.244.1.6")
    with pytest.raises(RefusedError, match=r"no address 10\.244\.1\.6"):
        programmer.apply(Target(lab.pod.path, (own, other)), RULES, Choice.AUTO)
    assert not programmer.observe(Target(lab.pod.path), None, Choice.AUTO).plan
    assert programmer.apply(Target(lab.pod.path, (own, ip_address("fd00:244:1::5"))), RULES, Choice.AUTO).found.plan


def test_a_freebind_does_not_pass_for_an_address(programmer: ChildProgrammer, pod: Netns) -> None:
    pod.set_sysctls({"net/ipv4/ip_nonlocal_bind": "1"})
    pod.ip("route add local 10.0.0.0/8 dev lo")
    with pytest.raises(RefusedError, match="no address"):
        programmer.apply(Target(pod.path, (ip_address("10.1.2.3"),)), RULES, Choice.AUTO)


@pytest.mark.fault(30)
def test_nothing_is_left_open(programmer: ChildProgrammer, pod: Netns, backend: Choice) -> None:
    mine = Pod(programmer, pod, backend)
    mine.apply(Policy())
    mine.differs(Policy())
    before, own = descriptors(programmer.pid), descriptors(os.getpid())
    for _ in range(50):
        mine.differs(Policy())
        programmer.clear(mine.target, now=True)
        mine.apply(Policy())
        with pytest.raises(InputError):
            programmer.observe(Target("/nonexistent"), RULES, backend)
    deadline = time.monotonic() + 10
    while len(descriptors(programmer.pid)) > len(before):  # netfilter's sockets are closed in the background
        assert time.monotonic() < deadline
    assert descriptors(os.getpid()) == own


def test_the_programmer_lives_in_an_empty_namespace(programmer: ChildProgrammer) -> None:
    links = Path(f"/proc/{programmer.pid}/net/dev").read_text(encoding="ascii").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in links] == ["lo"]


def test_neither_the_agent_nor_the_command_line_ever_enters_a_namespace(lab: Topology, tmp_path: Path) -> None:
    """Their whole system call trace holds no setns; only the programmer child's does."""
    trace = tmp_path / "trace"
    manifest = tmp_path / "pod.yaml"
    manifest.write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "nodeagent",
        "apply",
        "-f",
        str(manifest),
        "--netns",
        lab.pod.path,
        "--backend",
        "nft",
    ]
    traced = ["strace", "-f", "-qq", "-e", "trace=setns,execve", "-o", str(trace), *command]
    done = subprocess.run(traced, check=True, capture_output=True, text=True)
    assert done.returncode == 0
    lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
    main = lines[0].split()[0]
    entered = {line.split()[0] for line in lines if "setns(" in line}
    assert len(entered) == 1
    assert main not in entered
