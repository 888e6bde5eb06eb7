"""The child that makes the connections of a load, already inside the namespace, by epoll.

Run as `python -m tests.lab.load_worker UID GID`.  Each connection is greeted, sends a line, waits for its echo and is
then reset from this side, which distorts nothing any more, and leaves no TIME_WAIT and no port in use.
"""

import errno
import os
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

from tests.lab.process import control_socket, watch_parent
from tests.lab.wire import receive_frame, send_frame

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_ECHOED = b" load\n"


@dataclass(slots=True)
class _Attempt:
    sock: socket.socket
    target: int
    began: int
    heard: bytes = b""
    asked: bool = False


class _Worker:
    """One run of a plan."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.stopping = False
        self.records: list[tuple[int, int, int, str, int]] = []
        self._targets: list[tuple[str, int]] = [(address, port) for address, port in plan["targets"]]
        self._left: float = float("inf") if plan["connections"] is None else plan["connections"]
        self._in_flight: int = plan["in_flight"]
        self._interval, self._timeout = plan["interval"], int(plan["timeout"] * 1e9)
        self._started, self._next = 0, time.monotonic_ns()
        self._open: dict[int, _Attempt] = {}  # in the order of their beginning
        self._poll = select.epoll()

    def run(self, interrupts: tuple[int, int]) -> bool:
        """Run to the end; return False if the parent went away."""
        control, parent = interrupts
        for descriptor in interrupts:
            self._poll.register(descriptor, select.EPOLLIN)
        while self._open or not self._is_exhausted():
            self._begin_what_is_due()
            for descriptor, _ in self._poll.poll(self._patience()):
                if descriptor == parent:
                    return False
                if descriptor == control:
                    self.stopping = True
                    self._poll.unregister(control)
                elif descriptor in self._open:
                    self._advance(self._open[descriptor])
            self._give_up_on_the_silent()
        self._poll.close()
        return True

    def _is_exhausted(self) -> bool:
        return self.stopping or self._left <= 0

    def _begin_what_is_due(self) -> None:
        while not self._is_exhausted() and len(self._open) < self._in_flight and time.monotonic_ns() >= self._next:
            self._next += self._interval
            self._left -= 1
            self._begin(self._started % len(self._targets))
            self._started += 1

    def _begin(self, target: int) -> None:
        address = self._targets[target]
        sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(0)
        attempt = _Attempt(sock, target, time.monotonic_ns())
        self._open[sock.fileno()] = attempt
        self._poll.register(sock, select.EPOLLIN)
        error = sock.connect_ex(address)
        if error not in {0, errno.EINPROGRESS}:
            self._end(attempt, error)

    def _advance(self, attempt: _Attempt) -> None:
        try:
            data = attempt.sock.recv(4096)
            attempt.heard += data
            if not data:
                self._end(attempt, errno.ECONNRESET)
            elif attempt.heard.endswith(_ECHOED):
                self._end(attempt, 0)
            elif not attempt.asked and b"\n" in attempt.heard:
                attempt.asked = True
                attempt.sock.send(b"lab load\n")
        except BlockingIOError:
            return
        except OSError as error:
            self._end(attempt, error.errno or errno.EIO)

    def _give_up_on_the_silent(self) -> None:
        limit = time.monotonic_ns() - self._timeout
        while self._open and (oldest := next(iter(self._open.values()))).began < limit:
            self._end(oldest, errno.ETIMEDOUT)

    def _patience(self) -> float:
        if not self._is_exhausted() and len(self._open) < self._in_flight:
            return max(0.0, (self._next - time.monotonic_ns()) / 1e9)
        return 1.0

    def _end(self, attempt: _Attempt, error: int) -> None:
        del self._open[attempt.sock.fileno()]
        attempt.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        attempt.sock.close()
        heard = attempt.heard.decode("ascii", "replace")
        self.records.append((attempt.target, attempt.began, time.monotonic_ns(), heard, error))


def main() -> None:
    """Become UID and GID, run the plan, report, and stay until the parent is done."""
    control, parent = control_socket(), watch_parent()
    uid, gid = map(int, sys.argv[1:])
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    try:
        send_frame(control, {"ready": True})
        worker = _Worker(receive_frame(control)[0])
        if worker.run((control.fileno(), parent)):
            send_frame(control, worker.records)
            control.recv(1)
    except (EOFError, ConnectionError):
        return


if __name__ == "__main__":
    main()
