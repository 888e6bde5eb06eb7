"""What the kernel itself says about a TCP connection: ``struct tcp_info`` of ``include/uapi/linux/tcp.h``."""

import socket
import struct
import time
from typing import NamedTuple

_INFO = struct.Struct("=104xQQQQIII4xIIQQQQIIQQ")
_UNACKED_AT, _PATIENCE = 24, 60.0


class TcpInfo(NamedTuple):
    """The part of it that counts."""

    segments_out: int
    segments_in: int
    not_sent: int
    sent: int
    """Payload bytes, retransmitted ones included."""
    retransmitted: int


def tcp_info(sock: socket.socket) -> TcpInfo:
    """Return what the kernel says now."""
    values = _INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))
    return TcpInfo(values[4], values[5], values[6], values[-2], values[-1])


def settle(sock: socket.socket) -> TcpInfo:
    """Wait until everything that was sent has been acknowledged; return what the kernel says then."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        (unacked,) = struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), _UNACKED_AT)
        info = tcp_info(sock)
        if not unacked and not info.not_sent:
            return info
        if time.monotonic() > deadline:
            raise TimeoutError(f"{unacked} segments are still under way")
        time.sleep(0.01)
