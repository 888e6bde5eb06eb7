"""What a node sees instead of the machine: mounts and a network of its own.  Called by process 1, in new namespaces.

Everything that a node writes lies on one tmpfs, which vanishes with the mount namespace.  The machine's file system is
there to be read, and read-only; /etc and /var/lib are overlays.  The machine's sysctls are read-only too, but for those
that belong to the network namespace; the few others that kubelet sets are files of our own.

The network is eth0 with the node's addresses, a veth whose other end is on the node as well.  There is no default route
and no device that leads out.
"""

import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.cluster.cgroups import Hierarchy

HOST = Path("/run/cluster")
"""Where the node sees the directory that it shares with the machine: kubeconfig, logs, sockets."""
PROGRAMS = Path("/run/programs")
STATE = Path("/run/state")
NODE_NAME = "node-1"
NODE_V4, NODE_V6 = "10.99.0.1", "fd00:99::1"
POD_RANGES = ("10.88.0.0/16", "fd00:88::/64")
SERVICE_RANGES = ("10.96.0.0/16", "fd00:96::/112")
API_SERVICE = "10.96.0.1"
"""The first address of the services is the API server's; one rule stands for kube-proxy."""
DNS_SERVICE = "10.96.0.10"
"""What pods have for a resolver.  Nobody answers there, until a test does."""
API_PORT = 6443
WORLD = "world0"
"""The other end of the node's eth0: a test may put it into a namespace that plays the world."""

# What kubelet sets (its container manager's setupKernelTunables), and would set on the machine.
_KUBELET_SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
_SYSCTLS = Path("/run/sysctls")
_ENOUGH_INODES = "nr_inodes=2000000"


def mount_node(directory: Path, programs: Path, hierarchies: Iterable[Hierarchy]) -> None:
    """Give this process, alone in its mount namespace, the node's file system."""
    _mount("--make-rprivate", "/")
    _mount("-t", "proc", "proc", "/proc")
    _mount_run(directory, programs)
    for path in ("/etc", "/var/lib"):
        upper, work = (STATE / "overlay" / kind / path[1:] for kind in ("upper", "work"))
        upper.mkdir(parents=True)
        work.mkdir(parents=True)
        _mount("-t", "overlay", "-o", f"lowerdir={path},upperdir={upper},workdir={work}", "overlay", path)
    Path("/var/lib/kubelet").mkdir(exist_ok=True)
    for path in ("/var/log", "/var/lib/kubelet"):  # pods with user namespaces want mounts that an overlay cannot map
        _mount("-t", "tmpfs", "tmpfs", path)
    _mount_sys(hierarchies)
    _show_whole("proc", "sysfs")
    _guard_sysctls()
    _mount("-o", "remount,bind,ro", "/")
    # As systemd has it on a real node: mounts made in a pod's hostPath show up here, if the pod says so.
    _mount("--make-rshared", "/")


def _mount_run(directory: Path, programs: Path) -> None:
    """Build the new /run aside, because what it shows may lie below the old one."""
    aside = Path("/mnt")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(aside))
    for source, target in ((directory, HOST), (programs, PROGRAMS)):
        there = aside / target.relative_to("/run")
        there.mkdir()
        _mount("--bind", str(source), str(there))
    _mount("--move", str(aside), "/run")
    for path in (STATE, _SYSCTLS, Path("/run/lock"), Path("/run/netns")):
        path.mkdir()
    # Apart from /run: kubelet finds the file system of containerd's files by its device, and looks at one mount of it.
    _mount("-t", "tmpfs", "-o", f"mode=755,{_ENOUGH_INODES}", "tmpfs", str(STATE))


def _mount_sys(hierarchies: Iterable[Hierarchy]) -> None:
    """Mount what shows this network namespace's devices, and this cgroup namespace's hierarchies."""
    _run(["umount", "--recursive", "--lazy", "--no-mtab", "/sys"])  # else the machine's stay in mountinfo, beneath ours
    _mount("-t", "sysfs", "sysfs", "/sys")
    _mount("-t", "bpf", "bpf", "/sys/fs/bpf")
    if not any(hierarchy.mountpoint == Path("/sys/fs/cgroup") for hierarchy in hierarchies):
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/sys/fs/cgroup")
    for hierarchy in hierarchies:
        hierarchy.mountpoint.mkdir(exist_ok=True)
        selects = hierarchy.options.replace("name=", "none,name=")
        options = ("-o", selects) if selects else ()
        _mount("-t", hierarchy.kind, *options, "cgroup", str(hierarchy.mountpoint))


def _show_whole(*kinds: str) -> None:
    """Mount *kinds* once more, out of the way and with nothing on top.

    The kernel lets a user namespace mount them only where they can be seen whole already.
    """
    for kind in kinds:
        place = STATE / "whole" / kind
        place.mkdir(parents=True)
        _mount("-t", kind, kind, str(place))
    (STATE / "whole").chmod(0o700)


def _guard_sysctls() -> None:
    for path in ("/proc/sys", "/proc/sys/net"):
        _mount("--bind", path, path)
    _mount("-o", "remount,bind,ro", "/proc/sys")
    for name in _KUBELET_SYSCTLS:
        copy = _SYSCTLS / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(Path("/proc/sys", name).read_text())
        _mount("--bind", str(copy), f"/proc/sys/{name}")


def make_network() -> None:
    """Make the node's device, and the rule that stands for kube-proxy."""
    lines = (
        "link set lo up",
        f"link add eth0 type veth peer name {WORLD}",
        f"link set {WORLD} up",
        f"addr add {NODE_V4}/24 dev eth0",
        f"addr add {NODE_V6}/64 dev eth0 nodad",
        "link set eth0 up",
        f"route add {SERVICE_RANGES[0]} dev eth0",
    )
    _run(["ip", "-batch", "-"], "\n".join(lines))
    for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        Path("/proc/sys", name).write_text("1")
    to_api = f"ip daddr {API_SERVICE} tcp dport 443 dnat to {NODE_V4}:{API_PORT}"
    chains = "".join(
        f"chain {hook} {{ type nat hook {hook} priority -100; {to_api}; }}\n" for hook in ("prerouting", "output")
    )
    _run(["nft", "-f", "-"], f"table ip services {{\n{chains}}}\n")


def move_to_leaf(hierarchies: Iterable[Hierarchy]) -> None:
    """Move process 1 and this one out of the root cgroups: in version 2, those with processes hand on no controller."""
    for hierarchy in hierarchies:
        leaf = hierarchy.mountpoint / "system"
        leaf.mkdir()
        for file in ("cpuset.cpus", "cpuset.mems"):
            inherited = hierarchy.mountpoint / file
            if hierarchy.kind == "cgroup" and inherited.exists():
                (leaf / file).write_text(inherited.read_text())
        for process in ("1", "0"):  # zero: whoever writes
            (leaf / "cgroup.procs").write_text(process)


def _mount(*arguments: str) -> None:
    _run(["mount", "--no-mtab", *arguments])  # its table lies in /run, which is replaced


def _run(command: list[str], stdin: str = "") -> None:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
