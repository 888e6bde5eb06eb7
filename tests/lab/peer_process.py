"""The child in which peers live: the sidecar, the pod's own listeners, or the world.

Run as `python -m tests.lab.peer_process UID GID`, already inside the namespace that it serves.  One event loop,
no thread; so the order in its log is the order in which things happened to it.
"""

import asyncio
import json
import os
import socket
import sys
from contextlib import suppress
from typing import Any

from tests.lab.peer_tcp import Conversation, House, Role
from tests.lab.peer_udp import make_transparent, serve_datagrams
from tests.lab.process import control_socket, watch_parent
from tests.lab.wire import Greeting, failure, frame

_BACKLOG = 4096
_Key = tuple[str, str, int]


class _Peers:
    """The listeners of this process, and what they share."""

    def __init__(self) -> None:
        self.house = House()
        self._listeners: dict[_Key, tuple[socket.socket, asyncio.Server | None]] = {}

    async def answer(self, request: dict[str, Any]) -> object:
        """Do what the test process asks; OSError goes back to it."""
        match request:
            case {"op": "listen", "where": [proto, address, port], "role": role}:
                return await self._listen((proto, address, port), Role(**role))
            case {"op": "hush", "where": [proto, address, port]}:
                return self._hush((proto, address, port))
            case {"op": "passthrough", "on": on}:
                self.house.passthrough = on
            case {"op": "log"}:
                return self.house.log.dump()
            case {"op": "forget"}:
                self.house.log.forget()
            case {"op": "find", "token": token, "patience": patience}:
                return await self.house.log.find(token, patience)
            case {"op": "say", "greeting": line, "token": token}:
                return self._say(line, token)
        return {}

    async def _listen(self, key: _Key, role: Role) -> int:
        proto, address, _ = key
        sock = _bound(*key, transparent=role.transparent)
        try:
            loop, server = asyncio.get_running_loop(), None
            if proto == "tcp":
                server = await loop.create_server(lambda: Conversation(role, self.house), sock=sock, backlog=_BACKLOG)
            else:
                loop.add_reader(sock, serve_datagrams(sock, role, self.house))
        except BaseException:
            sock.close()
            raise
        actual: int = sock.getsockname()[1]
        self._listeners[proto, address, actual] = sock, server
        return actual

    def _hush(self, key: _Key) -> object:
        sock, server = self._listeners.pop(key)
        if server:
            server.close()
        else:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        return {}

    def _say(self, line: str, token: str) -> bool:
        greeting = Greeting.parse(line.encode())
        conversation = self.house.live.get(greeting) if greeting else None
        if conversation:
            conversation.say(token)
        return conversation is not None


def _bound(proto: str, address: str, port: int, *, transparent: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
    try:
        sock.settimeout(0)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if proto == "tcp":  # on UDP this would let two sockets share a port, and one of them starve
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if transparent:
            make_transparent(sock)
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def _serve(control: socket.socket) -> None:
    loop, peers = asyncio.get_running_loop(), _Peers()
    loop.add_reader(watch_parent(), os._exit, 0)
    reader, writer = await asyncio.open_connection(sock=control)
    writer.write(frame({"ready": True}))
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            size = int.from_bytes(await reader.readexactly(4), "big")
            request = json.loads(await reader.readexactly(size))
            try:
                reply = await peers.answer(request)
            except OSError as error:
                reply = failure(error)
            writer.write(frame(reply))
    os._exit(0)  # with whatever is open: the kernel closes it, and nobody is left to be told


def main() -> None:
    """Become UID and GID, then serve until the parent goes."""
    uid, gid = map(int, sys.argv[1:])
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    asyncio.run(_serve(control_socket()))


if __name__ == "__main__":
    main()
