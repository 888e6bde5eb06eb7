"""bpf(2) by ctypes: the commands that we use, with the kernel's own names.

Source: ``union bpf_attr`` in ``include/uapi/linux/bpf.h``.  Descriptors that come from here are
close-on-exec, as the kernel makes them; whoever gets one closes it.  All functions raise
OSError as the kernel answered, and decide nothing.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Callable, Iterator
from typing import Final

MAP_CREATE, MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, MAP_DELETE_ELEM, MAP_GET_NEXT_KEY = 0, 1, 2, 3, 4  # enum bpf_cmd
PROG_LOAD, OBJ_PIN, OBJ_GET, PROG_TEST_RUN, OBJ_GET_INFO_BY_FD, BTF_LOAD = 5, 6, 7, 10, 15, 18
PROG_GET_FD_BY_ID: Final = 13
MAP_LOOKUP_BATCH: Final = 24
MAP_FREEZE, MAP_UPDATE_BATCH, LINK_CREATE, LINK_UPDATE, ENABLE_STATS, LINK_DETACH = 22, 26, 28, 29, 32, 34
MAP_TYPE_LPM_TRIE: Final = 11  # enum bpf_map_type
PROG_TYPE_SOCKET_FILTER: Final = 1  # enum bpf_prog_type
F_NO_PREALLOC: Final = 1  # a flag that an LPM trie must have
BPF_FS_MAGIC: Final = 0xCAFE4A11  # include/uapi/linux/magic.h
ENOTSUPP: Final = 524  # include/linux/errno.h: not meant for user space, and yet it gets there

_NUMBERS: Final = {"x86_64": 321, "aarch64": 280}  # of bpf(2): the only thing here that differs
_MEMBARRIER: Final = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_GLOBAL: Final = 1  # include/uapi/linux/membarrier.h
_LINK_INFO_SIZE, _LINK_PROGRAM_AT = 32, 8  # struct bpf_link_info: type, id, prog_id
_PROGRAM_INFO_SIZE, _RUN_TIME_AT = 208, 192  # struct bpf_prog_info, up to run_cnt
_NAME_MAX: Final = 15  # BPF_OBJ_NAME_LEN less the NUL
_STATFS_SIZE: Final = 512  # more than any struct statfs; its first word is f_type
_LOG_SIZE: Final = 1 << 16
_BATCH_COUNT_AT: Final = 32  # in the part of union bpf_attr that is a batch's
_AT_ONCE: Final = 1024  # elements of a hash map; more than any of its buckets will ever hold

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> int:
    """Make the system call; *attributes* is the part of ``union bpf_attr`` that *command* reads."""
    return _call(command, attributes)[0]


def _call(command: int, attributes: bytes) -> tuple[int, bytes]:
    """Return the system call's result, and *attributes* as the kernel left them."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(0, f"the number of bpf(2) on {platform.machine()} is not known here")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(_libc.syscall(number, command, buffer, len(attributes)))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"bpf command {command}: {os.strerror(error)}")
    return result, buffer.raw


def with_memory(create: Callable[[], int]) -> int:
    """Return what *create* does, with the limit on locked memory lifted if that is what refused it.

    Before Linux 5.11 maps and programs count as locked memory, of which a process may have 64 KiB.
    """
    try:
        return create()
    except PermissionError as refused:
        if refused.errno != errno.EPERM:
            raise
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return create()
    except (OSError, ValueError) as refused:
        if isinstance(refused, OSError) and refused.errno != errno.EPERM:
            raise
        needed = "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, and on kernels before 5.11 CAP_SYS_RESOURCE"
        raise OSError(errno.EPERM, f"not permitted: it takes {needed}") from None


def synchronize() -> None:
    """Wait until every program that was running when this was called has ended (membarrier(2): synchronize_rcu)."""
    if _libc.syscall(_MEMBARRIER[platform.machine()], _MEMBARRIER_GLOBAL, 0, 0) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"membarrier: {os.strerror(error)}")


def create_lpm_trie(name: str, key_size: int, value_size: int, entries: int) -> int:
    """Return a descriptor of a new longest-prefix-match map; *name* is cut to 15 bytes."""
    sizes = key_size, value_size, entries, F_NO_PREALLOC
    return bpf(MAP_CREATE, struct.pack("=7I16s", MAP_TYPE_LPM_TRIE, *sizes, 0, 0, name.encode("ascii")[:_NAME_MAX]))


def create_map(kind: int, name: str, sizes: tuple[int, int, int], flags: int, btf: tuple[int, int, int]) -> int:
    """Return a descriptor of a new map; *sizes* of key, value and map, *btf* descriptor and type IDs of key and value.

    Zeroes for *btf*: none.
    """
    short = name.encode("ascii")[:_NAME_MAX]
    return bpf(MAP_CREATE, struct.pack("=7I16s4I", kind, *sizes, flags, 0, 0, short, 0, *btf))


def load_btf(data: bytes) -> int:
    """Return a descriptor of type information."""
    buffer = ctypes.create_string_buffer(data, len(data))
    return bpf(BTF_LOAD, struct.pack("=QQIII", ctypes.addressof(buffer), 0, len(data), 0, 0))


def lookup(descriptor: int, key: bytes, size: int) -> bytes | None:
    """Return the value of *key*, of *size* bytes; None if there is none."""
    keys, value = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(size)
    try:
        bpf(MAP_LOOKUP_ELEM, struct.pack("=IxxxxQQQ", descriptor, ctypes.addressof(keys), ctypes.addressof(value), 0))
    except FileNotFoundError:
        return None
    return value.raw


def delete(descriptor: int, key: bytes) -> None:
    """Remove one element, if it is there."""
    keys = ctypes.create_string_buffer(key, len(key))
    try:
        bpf(MAP_DELETE_ELEM, struct.pack("=IxxxxQQQ", descriptor, ctypes.addressof(keys), 0, 0))
    except FileNotFoundError:
        return


def keys_of(descriptor: int, size: int) -> Iterator[bytes]:
    """Yield the keys of a hash map, of *size* bytes each, that nobody else changes meanwhile."""
    key, following = ctypes.create_string_buffer(size), ctypes.create_string_buffer(size)
    at = 0  # no key: the first one
    while True:
        attributes = struct.pack("=IxxxxQQQ", descriptor, at, ctypes.addressof(following), 0)
        try:
            bpf(MAP_GET_NEXT_KEY, attributes)
        except FileNotFoundError:
            return
        ctypes.memmove(key, following, size)
        at = ctypes.addressof(key)
        yield key.raw


def entries_of(descriptor: int, key_size: int, value_size: int) -> list[tuple[bytes, bytes]]:
    """Return keys and values of a hash map that nobody else changes meanwhile: one system call for a thousand."""
    keys, values = ctypes.create_string_buffer(key_size * _AT_ONCE), ctypes.create_string_buffer(value_size * _AT_ONCE)
    place, buffers = ctypes.create_string_buffer(8), (ctypes.addressof(keys), ctypes.addressof(values))
    found: list[tuple[bytes, bytes]] = []
    at, more = 0, True  # no place: the beginning
    while more:
        attributes = struct.pack("=QQQQIIQQ", at, ctypes.addressof(place), *buffers, _AT_ONCE, descriptor, 0, 0)
        buffer = ctypes.create_string_buffer(attributes, len(attributes))
        if _libc.syscall(_NUMBERS[platform.machine()], MAP_LOOKUP_BATCH, buffer, len(attributes)) < 0:
            error = ctypes.get_errno()
            if error != errno.ENOENT:  # which is the end; how many came before it is told all the same
                raise OSError(error, f"bpf command {MAP_LOOKUP_BATCH}: {os.strerror(error)}")
            more = False
        (count,) = struct.unpack_from("=I", buffer, _BATCH_COUNT_AT)
        parts = memoryview(keys), memoryview(values)
        for number in range(count):
            key = bytes(parts[0][number * key_size : (number + 1) * key_size])
            found.append((key, bytes(parts[1][number * value_size : (number + 1) * value_size])))
        at = ctypes.addressof(place)
    return found


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


def load_program(kind: int, name: str, instructions: bytes, attach_type: int = 0, license_: str = "Apache-2.0") -> int:
    """Return a descriptor of a verified program; the end of the verifier's log is in the error if it refuses."""
    try:
        return _load(kind, name, instructions, attach_type, license_, None)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise  # not the verifier, which says EACCES or EINVAL
        log = ctypes.create_string_buffer(_LOG_SIZE)
        try:
            return _load(kind, name, instructions, attach_type, license_, log, level=1)
        except OSError as error:
            last = " ".join(log.value.decode("ascii", "replace").split("\n")[-6:])
            raise OSError(error.errno, f"{error.strerror}: {last}") from None


def verifier_statistics(kind: int, name: str, instructions: bytes, attach_type: int, license_: str) -> str:
    """Load a program, forget it, and return what the verifier says about its own work (log_level 4)."""
    log = ctypes.create_string_buffer(_LOG_SIZE)
    os.close(_load(kind, name, instructions, attach_type, license_, log, level=4))
    return log.value.decode("ascii", "replace")


def _load(  # noqa: PLR0913, PLR0917  # as many as the kernel takes
    kind: int,
    name: str,
    instructions: bytes,
    attach_type: int,
    license_: str,
    log: "ctypes.Array[ctypes.c_char] | None",
    level: int = 0,
) -> int:
    code = ctypes.create_string_buffer(instructions, len(instructions))
    terms = ctypes.create_string_buffer(license_.encode("ascii"))
    short = name.encode("ascii")[:_NAME_MAX]
    head = struct.pack("=IIQQ", kind, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(terms))
    logged = struct.pack("=IIQ", level, len(log) if log else 0, ctypes.addressof(log) if log else 0)
    return bpf(PROG_LOAD, head + logged + struct.pack("=II16sII", 0, 0, short, 0, attach_type))


def test_run(program: int, data: bytes) -> int:
    """Run *program* once on a packet of *data*; return what it returned."""
    packet = ctypes.create_string_buffer(data, len(data))
    attributes = struct.pack("=IIIIQQII40x", program, 0, len(data), 0, ctypes.addressof(packet), 0, 1, 0)
    while True:
        try:
            answer = _call(PROG_TEST_RUN, attributes)[1]
            return int(struct.unpack_from("=I", answer, 4)[0])
        except InterruptedError:  # it may have run, or not: our programs may be asked again
            continue


def create_link(program: int, target: int, attach_type: int) -> int:
    """Attach *program* to *target* for as long as the link that is returned lives."""
    return bpf(LINK_CREATE, struct.pack("=IIII", program, target, attach_type, 0))


def update_link(link: int, program: int) -> None:
    """Put *program* where another one was: each packet meets the one or the other."""
    bpf(LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0))


def detach_link(link: int) -> None:
    """Let the program behind *link* run no more, whoever else has the link."""
    bpf(LINK_DETACH, struct.pack("=I", link))


def object_info(descriptor: int, size: int) -> bytes:
    """Return the first *size* bytes of what the kernel tells about a map, program or link."""
    buffer = ctypes.create_string_buffer(size)
    bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, size, ctypes.addressof(buffer)))
    return buffer.raw


def enable_statistics() -> int:
    """Return a descriptor while which is open the kernel measures its programs' run time."""
    return bpf(ENABLE_STATS, struct.pack("=I", 0))


def pin(descriptor: int, path: str) -> None:
    """Give an object a name on a BPF file system; FileExistsError if it is taken."""
    name = ctypes.create_string_buffer(path.encode())
    bpf(OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), descriptor, 0))


def get(path: str) -> int:
    """Return a descriptor of the object pinned at *path*."""
    name = ctypes.create_string_buffer(path.encode())
    return bpf(OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0))


def file_system_of(path: str) -> int:
    """Return the magic number of the file system that *path* lies on, as statfs(2) tells; 0 if it does not exist."""
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    if _libc.statfs(path.encode(), buffer):
        return 0
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def is_bpffs(path: str) -> bool:
    """Say whether *path* lies on a BPF file system."""
    return file_system_of(path) == BPF_FS_MAGIC


def run_time(link: int) -> tuple[int, int]:
    """Return how many nanoseconds the program behind *link* has run, and how often, while statistics were enabled."""
    program_id = struct.unpack_from("=I", object_info(link, _LINK_INFO_SIZE), _LINK_PROGRAM_AT)[0]
    program = bpf(PROG_GET_FD_BY_ID, struct.pack("=II", program_id, 0))
    try:
        taken, runs = struct.unpack_from("=QQ", object_info(program, _PROGRAM_INFO_SIZE), _RUN_TIME_AT)
    finally:
        os.close(program)
    return taken, runs
