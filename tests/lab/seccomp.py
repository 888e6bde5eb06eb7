"""Kernels that lack something, made of one that has it: a filter that refuses certain sockets.

Run as ``python -m tests.lab.seccomp FAMILY:PROTOCOL[,…] COMMAND …``: COMMAND and its children get
EPROTONOSUPPORT for ``socket(FAMILY, _, PROTOCOL)``.  Source: ``seccomp(2)``, ``linux/filter.h``.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

NETFILTER = "16:12"
"""``NETLINK_NETFILTER``: nf_tables and ctnetlink."""
RAW_INET = "2:255"
"""The raw socket whose options are iptables' legacy tables, IPv4."""
RAW_INET6 = "10:255"
"""The same for IPv6."""

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _FIRST_ARGUMENT, _THIRD_ARGUMENT = 0, 16, 32  # offsets in struct seccomp_data; low halves


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse(*sockets: str) -> None:
    """Refuse these sockets to this process and all that it starts."""
    code = b"".join(map(_refusal, sockets)) + _instruction(_RETURN, _ALLOW)
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(code) // 8, code)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _refusal(socket: str) -> bytes:
    family, protocol = map(int, socket.split(":"))
    return b"".join(
        (
            _instruction(_LOAD, _NUMBER),
            _instruction(_JUMP_EQUAL, _SOCKET, when_false=5),
            _instruction(_LOAD, _FIRST_ARGUMENT),
            _instruction(_JUMP_EQUAL, family, when_false=3),
            _instruction(_LOAD, _THIRD_ARGUMENT),
            _instruction(_JUMP_EQUAL, protocol, when_false=1),
            _instruction(_RETURN, _ERRNO | errno.EPROTONOSUPPORT),
        )
    )


def _instruction(code: int, value: int, when_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, 0, when_false, value)


if __name__ == "__main__":
    refuse(*sys.argv[1].split(","))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  # that is what it is for
