"""The programmer in a container of its own: what it finds, hands over, gives up, and leaves behind."""

import asyncio
import ctypes
import errno
import mmap
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodeagent.bpf import layout, syscalls
from nodeagent.bpf.counting import Settings, detach
from nodeagent.bpf.generations import Folder
from nodeagent.bpf.slots import SlotReader
from nodeagent.compile import compile_policy
from nodeagent.errors import BusyError, InputError, KernelError, RefusedError, UnreachableError
from nodeagent.model import Policy
from nodeagent.netns.inhabited import PodNetns
from nodeagent.nri.frames import Frame, Kind, Service, encode
from nodeagent.nri.plugin import Dial
from nodeagent.programmer.connection import ConnectedProgrammer
from nodeagent.programmer.lockdown import MACHINES
from nodeagent.programmer.seam import Choice, CountingSettings, Target
from tests.lab import Cgroup, Netns
from tests.lab.programmer import RunningProgrammer
from tests.nri.pods import pod
from tests.nri.recorder import Recorder
from tests.nri.runtime import Runtime
from tests.nri.stage import plugged, scene

pytestmark = pytest.mark.kernel

RULES = compile_policy(Policy())
UID = "8d6a1f4e-0c52-4b7e-9f11-1d2c3b4a5e6f"
ADDRESS = ip_address("10.244.7.7")
ANYWHERE = CountingSettings("/", "/", "/")
"""What an agent says of where to count; the programmer knows better."""


@dataclass(frozen=True)
class Inhabited:
    """A pod with a process in it."""

    netns: Netns
    cgroup: Cgroup
    process: subprocess.Popen[bytes]

    @property
    def target(self) -> Target:
        """How an agent names it."""
        return Target(PodNetns("/as/the/agent/sees/it", UID), (ADDRESS,))


@pytest.fixture
def inhabited(pod: Netns, kubepods: Cgroup) -> Iterator[Inhabited]:
    pod.ip(f"addr add {ADDRESS}/32 dev lo")
    cgroup = kubepods.child("kubepods").child(f"pod{UID}")
    with subprocess.Popen([*pod.enter, "--", "sleep", "infinity"]) as process:
        pod.wait_for(process.pid)
        cgroup.child("0123456789ab").join(process.pid)
        try:
            yield Inhabited(pod, cgroup, process)
        finally:
            process.kill()


@pytest.fixture
def running(tmp_path: Path, kubepods: Cgroup, programs: Path) -> Iterator[RunningProgrammer]:
    with RunningProgrammer(tmp_path, kubepods.path, programs) as made:
        yield made
    detach()


@pytest.fixture
def connected(running: RunningProgrammer) -> Iterator[ConnectedProgrammer]:
    with closing(running.connect()) as programmer:
        yield programmer


def test_a_pod_is_found_although_no_process_of_it_has_a_number_there(
    connected: ConnectedProgrammer, inhabited: Inhabited
) -> None:
    assert connected.apply(inhabited.target, RULES, Choice.NFT).found.plan
    found = connected.observe(inhabited.target, RULES, Choice.NFT)
    assert (found.ruleset_id, bool(found.plan)) == (RULES.id, False)
    assert connected.clear(inhabited.target, now=False).removed
    assert inhabited.netns.run(["nft", "list", "ruleset"]) == ""


def test_legacy_rules_are_written_there_as_well(connected: ConnectedProgrammer, inhabited: Inhabited) -> None:
    connected.apply(inhabited.target, RULES, Choice.LEGACY)
    assert connected.observe(inhabited.target, RULES, Choice.LEGACY).ruleset_id == RULES.id
    assert connected.clear(inhabited.target, now=False).removed


def test_a_process_that_comes_later_is_found_as_well(connected: ConnectedProgrammer, inhabited: Inhabited) -> None:
    connected.apply(inhabited.target, RULES, Choice.NFT)
    with subprocess.Popen([*inhabited.netns.enter, "--", "sleep", "infinity"]) as later:
        inhabited.netns.wait_for(later.pid)
        inhabited.cgroup.child("ba9876543210").join(later.pid)
        inhabited.process.kill()
        inhabited.process.wait()
        try:
            assert not connected.observe(inhabited.target, RULES, Choice.NFT).plan
        finally:
            later.kill()


def test_a_pod_that_has_ended_is_told_as_such(connected: ConnectedProgrammer, inhabited: Inhabited) -> None:
    connected.apply(inhabited.target, RULES, Choice.NFT)
    inhabited.process.kill()
    inhabited.process.wait()
    with pytest.raises(InputError, match="no process"):
        connected.observe(inhabited.target, RULES, Choice.NFT)


def test_a_process_of_the_hosts_network_is_refused(connected: ConnectedProgrammer, kubepods: Cgroup) -> None:
    """By the identity of process 1's namespace, below the /proc that is mounted there."""
    cgroup = kubepods.child("kubepods").child(f"pod{UID}").child("0123456789ab")
    with subprocess.Popen(["sleep", "infinity"]) as process:
        cgroup.join(process.pid)
        try:
            with pytest.raises(RefusedError, match="host's network namespace"):
                connected.apply(Target(PodNetns("/", UID), (ip_address("127.0.0.1"),)), RULES, Choice.NFT)
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_another_programmer_goes_on_where_one_ended(
    running: RunningProgrammer, inhabited: Inhabited, number: signal.Signals
) -> None:
    with closing(running.connect()) as before:
        before.apply(inhabited.target, RULES, Choice.NFT)
        code = running.end(number)
        with pytest.raises(UnreachableError, match="try again"):
            before.backends()
    assert (code == 0) == (number == signal.SIGTERM)
    running.start()
    with closing(running.connect()) as after:
        assert not after.observe(inhabited.target, RULES, Choice.NFT).plan


@pytest.fixture
def counting(connected: ConnectedProgrammer) -> ConnectedProgrammer:
    """Let it count, as soon as the programs are compiled."""
    while True:
        with suppress(BusyError):
            connected.start_counting(ANYWHERE)
            return connected


def test_what_is_handed_over_can_be_read_and_nothing_else(counting: ConnectedProgrammer) -> None:
    descriptor = counting.slots()
    try:
        with SlotReader(descriptor) as reader:
            assert reader.read() == []
        size = layout.SLOTS * ctypes.sizeof(layout.SlotLayout)
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(PermissionError):  # we are root, and may call bpf(2): it is the map that is frozen
            syscalls.update(descriptor, bytes(4), bytes(ctypes.sizeof(layout.SlotLayout)))
    finally:
        os.close(descriptor)


def test_it_counts_where_it_was_told_at_its_start(counting: ConnectedProgrammer) -> None:
    """Below the test's cgroup and its BPF file system, whatever the agent says."""
    assert "egress" in counting.counting_health().attached
    assert Folder(Settings.bpffs).attached() == counting.counting_health().attached


# -- the container runtime, through it ----------------------------------------------------------


@pytest.fixture
def runtimes_socket(running: RunningProgrammer, tmp_path: Path) -> Path:
    """Start the programmer anew; it is told where the runtime listens."""
    path = tmp_path / "nri.sock"
    running.kill()
    running.options = ("--nri", str(path))
    running.start()
    return path


def dialling(programmer: ConnectedProgrammer) -> Dial:
    async def dial(_name: str) -> socket.socket:
        return socket.socket(fileno=await asyncio.to_thread(programmer.runtime))

    return dial


def relay_of(running: RunningProgrammer) -> Path:
    """Return where the kernel tells of the one child that relays."""
    (found,) = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    assert b"relay.py" in Path(f"/proc/{found}/cmdline").read_bytes()
    return Path(f"/proc/{found}")


@scene
async def test_the_runtime_is_heard_through_a_child_that_has_given_up_everything(
    runtimes_socket: Path, running: RunningProgrammer
) -> None:
    recorder = Recorder()
    with closing(await asyncio.to_thread(running.connect)) as connected:
        async with Runtime(runtimes_socket) as runtime, plugged(runtimes_socket, recorder, dial=dialling(connected)):
            await runtime.plugin()
            status = (relay_of(running) / "status").read_text()
            assert {f"Cap{kind}:\t{0:016x}" for kind in ("Inh", "Prm", "Eff", "Amb")} <= set(status.splitlines())
            assert "Seccomp:\t2\n" in status
            limits = (relay_of(running) / "limits").read_text()
            assert re.search(r"Max open files +0 +0 ", limits)
            await runtime.run_pod(pod(1))
            assert recorder.calls == ["synchronize", "run web-1"]
            os.kill(int(relay_of(running).name), signal.SIGKILL)
            await recorder.until(lambda told: told.errors)
            await runtime.run_pod(pod(2))
            await runtime.plugin()
            await recorder.until(lambda told: len(told.runtimes) == 2)
            assert set(recorder.pods) == {pod(1).id, pod(2).id}


def test_who_says_more_than_a_listener_is_cut_off_and_told_of(
    runtimes_socket: Path, running: RunningProgrammer
) -> None:
    with socket.socket(socket.AF_UNIX) as runtime, closing(running.connect()) as connected:
        runtime.bind(str(runtimes_socket))
        runtime.listen()
        with socket.socket(fileno=connected.runtime()) as agent, runtime.accept()[0] as heard:
            agent.sendall(encode(Frame(Service.RUNTIME, 1, Kind.REQUEST, b"something else")))
            assert heard.recv(1) == b""
        with socket.socket(fileno=connected.runtime()):
            assert connected.backends()
    assert "what no agent of ours says" in running.log.read_text()


def test_a_runtime_without_a_socket_is_asked_for_again(runtimes_socket: Path, running: RunningProgrammer) -> None:
    with closing(running.connect()) as connected:
        with pytest.raises(BusyError, match="is not there"):
            connected.runtime()
        with socket.socket(socket.AF_UNIX) as nobody:
            nobody.bind(str(runtimes_socket))
        with pytest.raises(KernelError, match="Connection refused"):
            connected.runtime()


def test_a_programmer_that_was_told_of_no_runtime_says_so(connected: ConnectedProgrammer) -> None:
    with pytest.raises(BusyError, match="--nri SOCKET"):
        connected.runtime()


# -- what it lacks, and what it gives up --------------------------------------------------------

CAPABILITIES = {
    "sys_admin": "no network namespace for us",
    "sys_ptrace": "give us SYS_PTRACE",
}


@pytest.mark.parametrize("name", CAPABILITIES)
def test_without_a_capability_it_says_so_and_ends(tmp_path: Path, kubepods: Cgroup, programs: Path, name: str) -> None:
    before = ("setpriv", f"--bounding-set=-{name}", "--inh-caps=-all", "--")
    with RunningProgrammer(tmp_path, kubepods.path, programs, before) as running:
        assert CAPABILITIES[name] in running.ended()


GIVEN_UP = """
import ctypes, os, sys
from nodeagent.programmer.lockdown import lock_down
libc = ctypes.CDLL(None, use_errno=True)
def fails(*call):
    ctypes.set_errno(0)
    return ctypes.get_errno() if libc.syscall(*call) < 0 else 0
net, mnt, pid, user = (os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("net", "mnt", "pid", "user"))
calls = eval(sys.argv[1], {"net": net, "mnt": mnt, "pid": pid, "user": user})
lock_down()
print({name: fails(*call) for name, call in calls.items()})
"""
NEWNET, NEWNS = 0x40000000, 0x20000


def errors_of(calls: str) -> dict[str, int]:
    """Return which error each call meets behind the lockdown."""
    done = subprocess.run([sys.executable, "-c", GIVEN_UP, calls], capture_output=True, text=True, check=True)
    found: dict[str, int] = eval(done.stdout)  # noqa: S307  # our own print
    return found


def test_only_namespaces_of_networks_are_entered_or_made() -> None:
    numbers = MACHINES[os.uname().machine].calls
    setns, unshare, clone = numbers["setns"], numbers["unshare"], numbers["clone"]
    found = errors_of(
        f"{{'net': ({setns}, net, {NEWNET}), 'own net': ({unshare}, {NEWNET}), 'clone3': ({numbers['clone3']}, 0, 0),"
        f"'mnt': ({setns}, mnt, {NEWNS}), 'pid': ({setns}, pid, 0x20000000), 'any': ({setns}, net, 0),"
        f"'user': ({setns}, user, 0x10000000), 'own mnt': ({unshare}, {NEWNS}), 'both': ({unshare}, {NEWNS | NEWNET}),"
        f"'clone mnt': ({clone}, {NEWNS | 17}, 0, 0, 0, 0), 'clone user': ({clone}, {0x10000000 | 17}, 0, 0, 0, 0)}}"
    )
    allowed = {name for name, error in found.items() if not error}
    assert allowed == {"net", "own net"}
    assert found.pop("clone3") == errno.ENOSYS
    assert {error for name, error in found.items() if name not in allowed} == {errno.EPERM}


def test_what_was_given_up_is_refused_before_the_kernel_looks_at_it() -> None:
    """With arguments that are no good: another error than EPERM would be the call's own."""
    by_argument = {"clone", "clone3", "setns", "unshare"}
    numbers = {name: at for name, at in MACHINES[os.uname().machine].calls.items() if name not in by_argument}
    found = errors_of(str({name: (at, -1, -1, -1, -1, -1) for name, at in numbers.items()}))
    assert {name for name, error in found.items() if error != errno.EPERM} == set()
    assert {"mount", "ptrace", "finit_module", "kexec_load", "open_by_handle_at"} <= found.keys()


NEWER = {"open_tree_attr": 467, "of Linux 6.18": 470, "of nobody yet": 600, "of x32": 0x40000000}


def test_calls_that_are_newer_than_the_list_are_those_of_a_kernel_without_them() -> None:
    """`open_tree_attr` copies a mount and changes its flags at once: what was read-only could be written to."""
    found = errors_of(str({name: (at, -1, -1, -1, -1, -1) for name, at in NEWER.items()}))
    assert found == dict.fromkeys(NEWER, errno.ENOSYS)


def test_the_running_programmer_has_given_it_up(connected: ConnectedProgrammer, running: RunningProgrammer) -> None:
    assert connected.backends()
    status = Path(f"/proc/{running.pid}/status").read_text()
    assert "Seccomp:\t2\n" in status
    assert "NoNewPrivs:\t1\n" in status


def test_the_programmer_has_no_network(connected: ConnectedProgrammer, running: RunningProgrammer) -> None:
    assert connected.backends()
    assert Path(f"/proc/{running.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    devices = Path(f"/proc/{running.pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]
