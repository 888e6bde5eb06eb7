"""Stop a child at each of its system calls, and kill it there.

Source: ``ptrace(2)``; ``struct ptrace_syscall_info`` of ``include/uapi/linux/ptrace.h``.
"""

import ctypes
import os
import signal
import struct
from collections.abc import Callable, Collection

_TRACEME, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_O_TRACESYSGOOD, _O_EXITKILL = 1, 1 << 20
_ENTRY = 1
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_INFO = struct.Struct("=B7xQQQ")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def kill_at(number: int, action: Callable[[], None], among: Collection[int] = ()) -> tuple[bool, int | None]:
    """Run *action* in a fork, and kill it as it enters its *number*-th system call (from 1), of those *among* if given.

    Returns whether it was killed (False: it came to its end before), and the number of the
    system call that it was about to make, None if it was not.
    """
    pid = os.fork()
    if pid == 0:
        _run_traced(action)
    _wait(pid)
    _ptrace(_SETOPTIONS, pid, _O_TRACESYSGOOD | _O_EXITKILL)
    entered = 0
    while True:
        _ptrace(_SYSCALL, pid, 0)
        status = _wait(pid)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                message = f"the action failed by itself at system call {entered}"
                raise AssertionError(message)
            return False, None
        if os.WSTOPSIG(status) == _SYSCALL_STOP and (call := _entered(pid)) is not None:
            entered += not among or call in among
            if entered == number and (not among or call in among):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return True, call


def _run_traced(action: Callable[[], None]) -> None:
    code = 1
    try:
        _ptrace(_TRACEME, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        action()
        code = 0
    finally:
        os._exit(code)


def _wait(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


def _entered(pid: int) -> int | None:
    """Return the number of the system call that *pid* enters, None if it leaves one."""
    buffer = ctypes.create_string_buffer(128)
    _ptrace(_GET_SYSCALL_INFO, pid, ctypes.addressof(buffer), size=len(buffer))
    operation, _, _, number = _INFO.unpack_from(buffer.raw)
    return number if operation == _ENTRY else None


def _ptrace(request: int, pid: int, data: int, size: int = 0) -> None:
    if _libc.ptrace(request, pid, size, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
