"""A mount namespace of one's own, with a BPF file system where the product looks for one."""

import ctypes
import os
from pathlib import Path

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
BPFFS = "/sys/fs/bpf"

_libc = ctypes.CDLL(None, use_errno=True)


def use_private_mounts() -> None:
    """Move this thread, and what it starts from now on, into private mounts; the machine's stay as they are."""
    _check(_libc.unshare(_CLONE_NEWNS))
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    # Always a fresh one: what a test pins is gone with it.
    Path(BPFFS).mkdir(exist_ok=True)
    _check(_libc.mount(b"bpf", BPFFS.encode(), b"bpf", 0, None))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
