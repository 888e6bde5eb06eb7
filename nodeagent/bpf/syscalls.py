"""bpf(2) by ctypes: the commands that we use, with the kernel's own names.

Source: ``union bpf_attr`` in ``include/uapi/linux/bpf.h``.  Descriptors that come from here are
close-on-exec, as the kernel makes them; whoever gets one closes it.  All functions raise
OSError as the kernel answered, and decide nothing.
"""

import ctypes
import os
import platform
import struct
from typing import Final

MAP_CREATE, MAP_UPDATE_ELEM, PROG_LOAD, OBJ_PIN, OBJ_GET = 0, 2, 5, 6, 7  # enum bpf_cmd
MAP_FREEZE, MAP_UPDATE_BATCH = 22, 26
MAP_TYPE_LPM_TRIE: Final = 11  # enum bpf_map_type
PROG_TYPE_SOCKET_FILTER: Final = 1  # enum bpf_prog_type
F_NO_PREALLOC: Final = 1  # a flag that an LPM trie must have
BPF_FS_MAGIC: Final = 0xCAFE4A11  # include/uapi/linux/magic.h
ENOTSUPP: Final = 524  # include/linux/errno.h: not meant for user space, and yet it gets there

_NUMBERS: Final = {"x86_64": 321, "aarch64": 280}  # of bpf(2): the only thing here that differs
_NAME_MAX: Final = 15  # BPF_OBJ_NAME_LEN less the NUL
_STATFS_SIZE: Final = 512  # more than any struct statfs; its first word is f_type
_LOG_SIZE: Final = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> int:
    """Make the system call; *attributes* is the part of ``union bpf_attr`` that *command* reads."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(0, f"the number of bpf(2) on {platform.machine()} is not known here")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(_libc.syscall(number, command, buffer, len(attributes)))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"bpf command {command}: {os.strerror(error)}")
    return result


def create_lpm_trie(name: str, key_size: int, value_size: int, entries: int) -> int:
    """Return a descriptor of a new longest-prefix-match map; *name* is cut to 15 bytes."""
    sizes = key_size, value_size, entries, F_NO_PREALLOC
    return bpf(MAP_CREATE, struct.pack("=7I16s", MAP_TYPE_LPM_TRIE, *sizes, 0, 0, name.encode("ascii")[:_NAME_MAX]))


def update(descriptor: int, key: bytes, value: bytes) -> None:
    """Set one element of a map."""
    keys, values = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    addresses = ctypes.addressof(keys), ctypes.addressof(values)
    bpf(MAP_UPDATE_ELEM, struct.pack("=IxxxxQQQ", descriptor, *addresses, 0))


def update_batch(descriptor: int, keys: bytes, values: bytes, count: int) -> None:
    """Set *count* elements; ENOTSUPP (or EINVAL) where the kernel has no batches for this map."""
    key_buffer = ctypes.create_string_buffer(keys, len(keys))
    value_buffer = ctypes.create_string_buffer(values, len(values))
    addresses = ctypes.addressof(key_buffer), ctypes.addressof(value_buffer)
    bpf(MAP_UPDATE_BATCH, struct.pack("=QQQQIIQQ", 0, 0, *addresses, count, descriptor, 0, 0))


def freeze(descriptor: int) -> None:
    """Let no system call write to the map any more."""
    bpf(MAP_FREEZE, struct.pack("=I", descriptor))


def load_program(kind: int, name: str, instructions: bytes) -> int:
    """Return a descriptor of a verified program; the verifier's log is in the error if it refuses."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_ = ctypes.create_string_buffer(b"Apache-2.0")
    log = ctypes.create_string_buffer(_LOG_SIZE)
    short = name.encode("ascii")[:_NAME_MAX]
    head = struct.pack("=IIQQ", kind, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(license_))
    silent = head + struct.pack("=IIQII16s", 0, 0, 0, 0, 0, short)
    try:
        return bpf(PROG_LOAD, silent)
    except PermissionError:
        raise
    except OSError:
        verbose = head + struct.pack("=IIQII16s", 1, _LOG_SIZE, ctypes.addressof(log), 0, 0, short)
        try:
            return bpf(PROG_LOAD, verbose)
        except OSError as error:
            last = " ".join(log.value.decode("ascii", "replace").split("\n")[-4:])
            raise OSError(error.errno, f"{error.strerror}: {last}") from None


def pin(descriptor: int, path: str) -> None:
    """Give an object a name on a BPF file system; FileExistsError if it is taken."""
    name = ctypes.create_string_buffer(path.encode())
    bpf(OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), descriptor, 0))


def get(path: str) -> int:
    """Return a descriptor of the object pinned at *path*."""
    name = ctypes.create_string_buffer(path.encode())
    return bpf(OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0))


def is_bpffs(path: str) -> bool:
    """Say whether *path* lies on a BPF file system, as statfs(2) tells; False if it does not exist."""
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    if _libc.statfs(path.encode(), buffer):
        return False
    kind = ctypes.c_long.from_buffer(buffer).value
    return kind & 0xFFFFFFFF == BPF_FS_MAGIC
