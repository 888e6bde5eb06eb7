"""What a programmer with SYS_ADMIN takes from itself: a seccomp filter, for it and all that it starts.

SYS_ADMIN is there for setns(2), and opens a hundred other doors: a read-only mount can be made writable, the host's
mounts can be entered through its /proc.  The runtime's default profile lets whoever has SYS_ADMIN do all of that, and
a profile of our own would have to be put on every node first.  So the programmer, before it does anything, gives up:

- every namespace but those of networks, for entering as for making;
- mounts, other processes' memory and descriptors, kernel modules and images, handles of files, keys, clocks, tracing;
- calls that this list does not know because they are newer: one of them may be another way to what was given up, as
  ``open_tree_attr`` (Linux 6.15) is to a mount's flags.  They fail as on a kernel that has none of them.

bpf(2) stays.  Sources: ``seccomp(2)``, ``linux/filter.h``, ``linux/seccomp.h``, ``linux/audit.h``, ``linux/sched.h``.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from nodeagent.errors import KernelError

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; of arguments the low halves
_CLONE_NEWNET: Final = 0x40000000
_CLONE_NEW: Final = 0x7E020000
"""Any namespace but time's, whose bit is a signal's number in clone(2)."""
_UNKNOWN: Final = 467
"""From this number on: calls that are newer than this list (Linux 6.15); and x86-64's x32, the old ones once more."""

_COMMON: Final = {
    "io_uring_setup": 425,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "clone3": 435,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "quotactl_fd": 443,
}


@dataclass(frozen=True, slots=True)
class Machine:
    """A processor's way to make system calls: its number in audit's list, and the calls' numbers."""

    audit: int
    calls: Mapping[str, int]


MACHINES: Final = {
    "x86_64": Machine(
        0xC000003E,
        _COMMON
        | {"clone": 56, "setns": 308, "unshare": 272}
        | {"mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "swapon": 167, "swapoff": 168}
        | {"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "userfaultfd": 323}
        | {"init_module": 175, "delete_module": 176, "finit_module": 313, "kexec_load": 246, "kexec_file_load": 320}
        | {"open_by_handle_at": 304, "perf_event_open": 298, "add_key": 248, "request_key": 249, "keyctl": 250}
        | {"reboot": 169, "acct": 163, "quotactl": 179, "syslog": 103, "fanotify_init": 300, "vhangup": 153}
        | {"settimeofday": 164, "clock_settime": 227, "adjtimex": 159, "clock_adjtime": 305}
        | {"sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "mknod": 133, "mknodat": 259},
    ),
    "aarch64": Machine(
        0xC00000B7,
        _COMMON
        | {"clone": 220, "setns": 268, "unshare": 97}
        | {"mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "swapon": 224, "swapoff": 225}
        | {"ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "userfaultfd": 282}
        | {"init_module": 105, "delete_module": 106, "finit_module": 273, "kexec_load": 104, "kexec_file_load": 294}
        | {"open_by_handle_at": 265, "perf_event_open": 241, "add_key": 217, "request_key": 218, "keyctl": 219}
        | {"reboot": 142, "acct": 89, "quotactl": 60, "syslog": 116, "fanotify_init": 262, "vhangup": 58}
        | {"settimeofday": 170, "clock_settime": 112, "adjtimex": 171, "clock_adjtime": 266}
        | {"sethostname": 161, "setdomainname": 162, "mknodat": 33},
    ),
}
_BY_ARGUMENT: Final = frozenset({"clone", "clone3", "setns", "unshare"})


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def lock_down() -> None:
    """Give it all up, for good.  Call it while there is one thread.

    Raises:
        KernelError: this kernel or machine does not let us; nothing was given up.
    """
    machine = MACHINES.get(platform.machine())
    if machine is None:
        raise KernelError(f"the system calls of {platform.machine()} are not known here: there is no lockdown for it")
    code = b"".join(_filter(machine))
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program)):
        raise KernelError(f"this kernel takes no seccomp filter: {os.strerror(ctypes.get_errno())}")


def _filter(machine: Machine) -> Iterator[bytes]:
    """Yield the filter's instructions, 8 bytes each."""
    calls = machine.calls
    yield _do(_LOAD, _ARCHITECTURE)
    yield _do(_EQUAL, machine.audit, when_true=1)
    yield _do(_RETURN, _KILL_PROCESS)
    yield _do(_LOAD, _NUMBER)
    yield _do(_AT_LEAST, _UNKNOWN, when_false=1)
    yield _refuse(errno.ENOSYS)
    yield _do(_EQUAL, calls["clone3"], when_false=1)  # its flags lie in memory; without it, clone is taken
    yield _refuse(errno.ENOSYS)
    for name in sorted(calls.keys() - _BY_ARGUMENT):
        yield _do(_EQUAL, calls[name], when_false=1)
        yield _refuse(errno.EPERM)
    yield from _only_networks(calls["unshare"], argument=0)
    yield from _only_networks(calls["setns"], argument=1)
    yield _do(_EQUAL, calls["clone"], when_false=3)
    yield _do(_LOAD, _ARGUMENTS)
    yield _do(_ANY_BIT, _CLONE_NEW, when_false=1)
    yield _refuse(errno.EPERM)
    yield _do(_RETURN, _ALLOW)


def _only_networks(call: int, argument: int) -> Iterator[bytes]:
    yield _do(_EQUAL, call, when_false=4)
    yield _do(_LOAD, _ARGUMENTS + 8 * argument)
    yield _do(_EQUAL, _CLONE_NEWNET, when_true=1)
    yield _refuse(errno.EPERM)
    yield _do(_RETURN, _ALLOW)


def _refuse(error: int) -> bytes:
    return _do(_RETURN, _ERRNO | error)


def _do(code: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, when_true, when_false, value)
