"""Between an agent without privilege and the container runtime's NRI socket: nothing goes in but what a listener says.

    python -I -S relay.py RUNTIME AGENT

Who speaks to that socket may change any container before it starts, and so take over the node.  So the agent is never
given a connection of its own, but one end of a pair; at the other end is a child that has both, given up all
privilege, and can open nothing any more.  What the runtime says it hands on unread.  Of what the agent says it hands on
one registration, one subscription and then :data:`ANSWERS`, byte for byte, and ends at anything else.

RUNTIME and AGENT are descriptors.  A connection's end is the child's end, and the other way round.  It needs nothing
but the standard library, so it begins within a few milliseconds, and is small.
"""

import ctypes
import resource
import select
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final

_OF_PLUGIN, _OF_RUNTIME = 1, 2
_REQUEST, _RESPONSE = 1, 2
_HEADER: Final = struct.Struct(">IIIIBB")
"""The mux's header (connection, length), and ttrpc's (length, stream, kind, flags): see :mod:`nodeagent.nri.frames`."""
_MUX_BYTES: Final = 8
_FIRST_STREAM: Final = 1
"""The number of either side's first request: the registration, and what the subscription answers."""
_SAYABLE_BYTES: Final = 256
NOT_SAYABLE: Final = 4
"""The child's exit code where the agent has said what it should not."""
_READ: Final = 64 * 1024
_CAPABILITY_VERSION: Final = 0x20080522  # linux/capability.h
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _CLEAR_ALL = 38, 47, 4


def _number(field: int, value: int) -> bytes:
    r"""Return a protobuf field with a number.

    >>> _number(1, 300)
    b'\x08\xac\x02'
    """
    encoded = bytearray([field << 3])
    while value > 0x7F:  # noqa: PLR2004  # seven bits a byte, then one that says whether more follow
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _text(field: int, value: bytes) -> bytes:
    return bytes([field << 3 | 2, len(value)]) + value


_SUBSCRIBED: Final = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 5 | 1 << 10
"""RunPodSandbox, StopPodSandbox, RemovePodSandbox, StartContainer, RemoveContainer: none that may change anything."""
REGISTRATION: Final = (
    _OF_RUNTIME,
    _REQUEST,
    _text(1, b"nri.pkg.api.v1alpha1.Runtime")
    + _text(2, b"RegisterPlugin")
    + _text(3, _text(1, b"nodeagent") + _text(2, b"10"))
    + _number(4, 30_000_000_000),
)
"""What an agent says first: connection, kind, message."""
SUBSCRIPTION: Final = (_OF_PLUGIN, _RESPONSE, _text(2, _number(2, _SUBSCRIBED)))
"""What it answers first; an empty answer would subscribe to everything.  A runtime passes over what answers none of its
requests, so this has to be the answer to the first one, and the only one.
"""
NO_METHOD: Final = (_OF_PLUGIN, _RESPONSE, _text(1, _number(1, 12) + _text(2, b"no such method")))
ANSWERS: Final = frozenset({NO_METHOD, (_OF_PLUGIN, _RESPONSE, b""), (_OF_PLUGIN, _RESPONSE, _text(2, _number(2, 1)))})
"""All that it answers from then on: no such method, nothing, and that a part of the inventory was taken."""


class Sieve:
    """What may go on of one agent's bytes; useless after its first error."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._sayable = frozenset({REGISTRATION})

    def pass_on(self, data: bytes) -> Iterator[bytes]:
        """Yield the messages that *data* completes.

        Raises:
            PermissionError: this is nothing that an agent of ours says.
        """
        self._rest += data
        while len(self._rest) >= _HEADER.size:
            connection, piece, length, stream, kind, flags = _HEADER.unpack_from(self._rest)
            whole = _HEADER.size + length
            if flags or length > _SAYABLE_BYTES or piece + _MUX_BYTES != whole:
                raise PermissionError("a frame that no agent of ours sends")
            if len(self._rest) < whole:
                return
            frame = bytes(self._rest[:whole])
            said = connection, kind, frame[_HEADER.size :]
            is_first = said in {REGISTRATION, SUBSCRIPTION}
            if said not in self._sayable or is_first != (stream == _FIRST_STREAM):
                raise PermissionError("a message that no agent of ours sends")
            if said == REGISTRATION:
                self._sayable = frozenset({SUBSCRIPTION, NO_METHOD})
            elif said == SUBSCRIPTION:
                self._sayable = ANSWERS
            del self._rest[:whole]
            yield frame


def main(runtime: int, agent: int) -> None:
    """Give up everything, and relay until either side ends, or the agent says what it should not."""
    with socket.socket(fileno=runtime) as there, socket.socket(fileno=agent) as here:
        there.setblocking(True)  # noqa: FBT003  # the standard library's signature
        give_up()
        try:
            relay(there, here)
        except PermissionError:
            sys.exit(NOT_SAYABLE)
        except OSError:
            return


def relay(runtime: socket.socket, agent: socket.socket) -> None:
    """Hand on until either side ends.

    Raises:
        PermissionError: the agent says what it should not.
        OSError: one of them is gone.
    """
    sieve = Sieve()
    while True:
        ready, _, _ = select.select([runtime, agent], [], [])
        for sock in ready:
            data = sock.recv(_READ)
            if not data:
                return
            if sock is runtime:
                agent.sendall(data)
            else:
                for frame in sieve.pass_on(data):
                    runtime.sendall(frame)


def give_up() -> None:
    """Be without capabilities, and unable to open anything, for good.

    Raises:
        OSError: the kernel does not let us.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    nothing = struct.pack("=6I", 0, 0, 0, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.capset(
        struct.pack("=Ii", _CAPABILITY_VERSION, 0), ctypes.c_char_p(nothing)
    ):
        raise OSError(ctypes.get_errno(), "privileges are not to be given up")
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
