"""From instructions to programs in the kernel: which hook each belongs to, and which maps it uses."""

import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from nodeagent.bpf import syscalls
from nodeagent.bpf.layout import MapNumber
from nodeagent.errors import KernelError

# enum bpf_prog_type
_SCHED_CLS, _CGROUP_SKB, _CGROUP_SOCK, _SOCK_OPS, _CGROUP_SOCK_ADDR = 3, 8, 9, 13, 18
_LICENSE: Final = "GPL"  # as the kernel spells it: bpf/ is GPL-2.0-only
_LD_IMM64, _PSEUDO_MAP_FD = 0x18, 1
_INSTRUCTION: Final = struct.Struct("=BBhi")


@dataclass(frozen=True)
class Hook:
    """A program that is attached to a cgroup: its type, its attach type, and whether counting is possible without."""

    kind: int
    attach_type: int
    essential: bool
    without: str
    """What is not known without it."""


HOOKS: Final[Mapping[str, Hook]] = {
    "sock_create": Hook(_CGROUP_SOCK, 2, essential=False, without="gids, and pods without a cgroup of their own"),
    "sockops": Hook(_SOCK_OPS, 3, essential=False, without="inbound connections whose listener has closed"),
    "sendmsg4": Hook(_CGROUP_SOCK_ADDR, 14, essential=False, without="whom redirected unconnected UDP dialled (IPv4)"),
    "sendmsg6": Hook(_CGROUP_SOCK_ADDR, 15, essential=False, without="whom redirected unconnected UDP dialled (IPv6)"),
    "ingress": Hook(_CGROUP_SKB, 0, essential=False, without="received bytes, and UDP servers"),
    "egress": Hook(_CGROUP_SKB, 1, essential=True, without="anything"),
}
"""By name, in the order in which they are attached: what egress relies on comes first."""

UPKEEP: Final = ("fill", "reserve", "evict", "release", "carry")
"""Programs that run when user space asks them to."""

GUARD: Final = "guard_wire"
"""The program on the host's side of pods' veths (:mod:`nodeagent.bpf.guard`)."""


def load(name: str, code: bytes, maps: Mapping[MapNumber, int]) -> int:
    """Return a descriptor of the program *name* on *maps*.

    Raises:
        KernelError: the kernel refuses it; the message ends with the verifier's last words.
    """
    kind, attach_type = _type_of(name)
    try:
        patched = _on_maps(code, maps)
        return syscalls.with_memory(lambda: syscalls.load_program(kind, f"na_{name}", patched, attach_type, _LICENSE))
    except OSError as error:
        raise KernelError(f"the kernel refuses the program {name!r}: {error.strerror}") from None


def verified_instructions(name: str, code: bytes, maps: Mapping[MapNumber, int]) -> int:
    """Return how many instructions the verifier looks at; a kernel gives up at a million, old ones are slow before."""
    kind, attach_type = _type_of(name)
    said = syscalls.verifier_statistics(kind, name, _on_maps(code, maps), attach_type, _LICENSE)
    match = re.search(r"processed (\d+) insns", said)
    if not match:
        raise KernelError(f"the verifier does not say how much it did: {said!r}")
    return int(match[1])


def _type_of(name: str) -> tuple[int, int]:
    hook = HOOKS.get(name)
    return (hook.kind, hook.attach_type) if hook else (_SCHED_CLS, 0)


def _on_maps(code: bytes, maps: Mapping[MapNumber, int]) -> bytes:
    """Return *code* with descriptors in place of the maps' numbers."""
    patched = bytearray(code)
    size, at = _INSTRUCTION.size, 0
    while at < len(code):
        operation, registers, offset, immediate = _INSTRUCTION.unpack_from(code, at)
        if operation == _LD_IMM64:
            if registers >> 4 == _PSEUDO_MAP_FD:
                descriptor = maps[MapNumber(immediate)]
                _INSTRUCTION.pack_into(patched, at, operation, registers, offset, descriptor)
            at += size  # the upper half of the number is an instruction of its own
        at += size
    return bytes(patched)


def close_all(descriptors: Iterable[int]) -> None:
    """Close them."""
    for descriptor in descriptors:
        os.close(descriptor)
