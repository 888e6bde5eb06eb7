"""Many ranges, one look-up: a longest-prefix-match map behind a pinned socket filter.

``-m bpf --object-pinned PATH`` runs the program on a packet; it answers 1 where the packet's
destination lies in one of the ranges.  One program a list of ranges, named by its content: all
pods share it, and what is pinned under a name never changes (the map is frozen).

Promises: :func:`ensure_pinned` is idempotent and safe against others that do the same, and a
process killed in the middle leaves nothing: only what is complete gets a name.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from nodeagent.bpf import syscalls
from nodeagent.errors import KernelError
from nodeagent.model import Family, Network, RangeSet

_DESTINATION_AT: Final = {Family.V4: 16, Family.V6: 24}  # in struct iphdr, struct ipv6hdr
_PREFIX: Final = struct.Struct("=I")  # struct bpf_lpm_trie_key: prefixlen, then the address
_VALUE: Final = b"\1"

# linux/bpf.h, linux/bpf_common.h
_LD_IMM64, _MOV64_IMM, _MOV64_REG, _ADD64_IMM, _ST_MEM_W = 0x18, 0xB7, 0xBF, 0x07, 0x62
_CALL, _EXIT, _JEQ_IMM, _JNE_IMM = 0x85, 0x95, 0x15, 0x55
_PSEUDO_MAP_FD: Final = 1
_MAP_LOOKUP_ELEM, _SKB_LOAD_BYTES_RELATIVE = 1, 68
_HDR_START_NET: Final = 1
_FRAME: Final = 10  # r10


def ensure_pinned(ranges: RangeSet, path: Path) -> None:
    """Make sure that a program that matches *ranges* is pinned at *path*, below a bpffs.

    Raises:
        KernelError: no BPF file system is there, or the kernel refuses the map or the program.
    """
    mount = path.parent.parent
    if not syscalls.is_bpffs(str(mount)):
        raise KernelError(
            f"{len(ranges.networks)} ranges need a program pinned below {mount}, where no BPF file system is mounted: "
            f"mount one ('mount -t bpf bpf {mount}'; in a container, mount the host's), or use the nft backend"
        )
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            _build_and_pin(ranges, str(path))
    except OSError as error:
        raise KernelError(f"cannot pin {len(ranges.networks)} ranges at {path}: {error.strerror}") from None


def unpin_all(bpffs: Path) -> None:
    """Remove every pin of ours; rules that use one go on working until somebody writes them again."""
    folder = bpffs / "nodeagent"
    for family in Family:
        for path in folder.glob(f"*-{family}"):
            path.unlink(missing_ok=True)


def _build_and_pin(ranges: RangeSet, path: str) -> None:
    trie = _filled_map(ranges)
    try:
        code = b"".join(_program(ranges.family, trie))
        program = syscalls.with_memory(
            lambda: syscalls.load_program(syscalls.PROG_TYPE_SOCKET_FILTER, "nodeagent_lpm", code)
        )
    finally:
        os.close(trie)  # the program holds it
    try:
        syscalls.pin(program, path)
    except FileExistsError:
        pass  # somebody was faster, with the same content
    finally:
        os.close(program)


def _filled_map(ranges: RangeSet) -> int:
    descriptor = _create_map(_PREFIX.size + ranges.family.bits // 8, len(ranges.networks))
    try:
        _fill(descriptor, [_key(network) for network in ranges.networks])
        syscalls.freeze(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _create_map(key_size: int, entries: int) -> int:
    return syscalls.with_memory(lambda: syscalls.create_lpm_trie("nodeagent_lpm", key_size, len(_VALUE), entries))


def _fill(descriptor: int, keys: Sequence[bytes]) -> None:
    try:
        syscalls.update_batch(descriptor, b"".join(keys), _VALUE * len(keys), len(keys))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, syscalls.ENOTSUPP):
            raise
        for key in keys:  # before Linux 5.13
            syscalls.update(descriptor, key, _VALUE)


def _key(network: Network) -> bytes:
    return _PREFIX.pack(network.prefixlen) + network.network_address.packed


def _instruction(code: int, destination: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    registers = ctypes.c_uint8(source << 4 | destination).value  # struct bpf_insn, little-endian bit fields
    return struct.pack("=BBhi", code, registers, offset, immediate)


def _program(family: Family, trie: int) -> Iterator[bytes]:
    """Yield a program that returns 1 if the map holds the packet's destination, else 0."""
    size = family.bits // 8
    key_at = -(_PREFIX.size + size)
    yield _instruction(_ST_MEM_W, _FRAME, offset=key_at, immediate=family.bits)
    yield _instruction(_MOV64_IMM, 2, immediate=_DESTINATION_AT[family])
    yield _instruction(_MOV64_REG, 3, _FRAME)
    yield _instruction(_ADD64_IMM, 3, immediate=-size)
    yield _instruction(_MOV64_IMM, 4, immediate=size)
    yield _instruction(_MOV64_IMM, 5, immediate=_HDR_START_NET)
    yield _instruction(_CALL, immediate=_SKB_LOAD_BYTES_RELATIVE)
    yield _instruction(_JNE_IMM, 0, offset=8)  # to "no"
    yield _instruction(_LD_IMM64, 1, _PSEUDO_MAP_FD, immediate=trie)
    yield _instruction(0)
    yield _instruction(_MOV64_REG, 2, _FRAME)
    yield _instruction(_ADD64_IMM, 2, immediate=key_at)
    yield _instruction(_CALL, immediate=_MAP_LOOKUP_ELEM)
    yield _instruction(_JEQ_IMM, 0, offset=2)  # to "no"
    yield _instruction(_MOV64_IMM, 0, immediate=1)
    yield _instruction(_EXIT)
    yield _instruction(_MOV64_IMM, 0, immediate=0)  # "no"
    yield _instruction(_EXIT)
