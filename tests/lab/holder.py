"""The child that *is* a network namespace: it makes one, and makes sockets in it for whom it is asked.

Run as `python -m tests.lab.holder`.  It has a network and a mount namespace of its own and one thread.  A
namespace lives as long as its holder, or as the last socket made in it.

What `-m owner` and `meta skuid` compare is the fsuid and fsgid in the credentials of the socket's *file*, taken
when it was made (struct file, f_cred); eBPF's socket uid is the inode's, taken from the fsuid too.  So the
holder sets exactly these two around socket(2), and the socket keeps them wherever it is sent.
"""

import ctypes
import fcntl
import os
import select
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.lab.process import control_socket, watch_parent
from tests.lab.wire import failure, receive_frame, send_frame

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000  # linux/sched.h
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000  # linux/mount.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h
_UNCHANGED = ctypes.c_uint(-1)

_where: list[str] = []  # the cgroup that this process was last moved to

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Make the namespaces, say so, then serve until the parent goes."""
    with suppress(BrokenPipeError):  # it went before it heard us
        _serve_parent()


def _serve_parent() -> None:
    control, parent = control_socket(), watch_parent()
    try:
        _unshare()
        _loopback_up()
    except OSError as error:
        send_frame(control, failure(error))
        return
    send_frame(control, {"ready": True})
    while True:
        readable, _, _ = select.select([control.fileno(), parent], [], [])
        if parent in readable:
            return
        try:
            request, _ = receive_frame(control)
        except (EOFError, ConnectionError):
            return
        _serve(control, request)


def _serve(control: socket.socket, request: dict[str, Any]) -> None:
    try:
        match request:
            case {"op": "socket", "uid": uid, "gid": gid, "cgroup": cgroup, "kind": [family, kind, protocol]}:
                _join(cgroup)
                with _socket_of(uid, gid, (family, kind, protocol)) as sock:
                    send_frame(control, {}, (sock.fileno(),))
            case {"op": "lock"}:
                send_frame(control, os.memfd_create("xtables.lock"))
            case {"op": "sysctl", "name": name}:
                send_frame(control, _sysctl(name).read_text().strip())
            case {"op": "set_sysctls", "values": values}:
                for name, value in values.items():
                    _sysctl(name).write_text(value)
                send_frame(control, {})
    except OSError as error:
        send_frame(control, failure(error))


def _socket_of(uid: int, gid: int, kind: tuple[int, int, int]) -> socket.socket:
    # The real ids too: they are what eBPF's sock_create sees.
    os.setresgid(gid, -1, -1)
    os.setresuid(uid, -1, -1)
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)
    try:
        # Neither call reports a failure; both return the value that was in force.
        if (_libc.setfsuid(_UNCHANGED), _libc.setfsgid(_UNCHANGED)) != (uid, gid):
            raise PermissionError(1, f"cannot act as uid {uid}, gid {gid}: not root?")
        return socket.socket(*kind)
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(0)
        os.setresuid(0, -1, -1)
        os.setresgid(0, -1, -1)


def _join(cgroup: str | None) -> None:
    """Move this process, so that the socket is born in *cgroup*; it stays there until it is asked to move again."""
    if cgroup and cgroup not in _where:
        Path(cgroup, "cgroup.procs").write_text("0")
        _where[:] = [cgroup]


def _sysctl(name: str) -> Path:
    # /proc/sys/net shows the network namespace of the process that looks it up.
    return Path("/proc/sys", name)


def _unshare() -> None:
    if _libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS):
        raise _last_error("unshare")
    if _libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None):
        raise _last_error("make the mounts private")


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
        flags = struct.unpack_from("h", request, 16)[0]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def _last_error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}; the lab needs root")


if __name__ == "__main__":
    main()
