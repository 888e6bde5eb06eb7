"""The plugin: one connection after the other, for as long as the agent runs.

The runtime may restart, hang, or say nonsense: each ends the connection with one error, and the
next attempt follows soon, because until it succeeds pods start without us.
"""

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeAlias

import structlog

from nodeagent.errors import NodeagentError, UnreachableError, printable
from nodeagent.nri.handler import Handler
from nodeagent.nri.late import Late
from nodeagent.nri.session import Session, Settings

SOCKET_PATH = "/var/run/nri/nri.sock"
"""Where runtimes listen unless told otherwise."""


class AbsentError(UnreachableError):
    """This node has no such socket."""


Dial: TypeAlias = Callable[[str], Awaitable[socket.socket]]


async def connect(path: str) -> socket.socket:
    """Return a connection to the socket at *path*.

    Raises:
        OSError: nobody listens there, or this process may not connect.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, path)
    except BaseException:
        sock.close()
        raise
    return sock


class Plugin:
    """An NRI plugin that tells *handler* about pods before their first container starts.

    *dial* makes the connection: for a process that may not open the socket itself, somebody who
    may passes it one.
    """

    def __init__(
        self,
        socket_path: str,
        handler: Handler,
        settings: Settings = Settings(),  # noqa: B008  # frozen
        dial: Dial = connect,
    ) -> None:
        self._path = socket_path
        self._handler = handler
        self._settings = settings
        self._dial = dial
        self._late = Late()

    async def run(self) -> NoReturn:
        """Serve until cancelled.  What is late then is cancelled as well."""
        failures = 0
        said = ""
        try:
            while True:
                synchronized, error = await self._serve_once()
                failures = 0 if synchronized else failures + 1
                self._handler.disconnected(error)
                if synchronized or str(error) != said:
                    structlog.get_logger().warning("no NRI connection", path=self._path, reason=str(error))
                    said = str(error)
                await asyncio.sleep(self._delay(failures))
        finally:
            await self._late.end()

    async def _serve_once(self) -> tuple[bool, NodeagentError]:
        """Return whether the connection got as far as being synchronized, and how it ended."""
        session = Session(self._handler, self._settings, self._late)
        try:
            sock = await self._dial(self._path)
        except OSError as error:
            what = f"{printable(self._path)}: {_reason(error)}: is NRI switched on in the container runtime?"
            return False, UnreachableError(what)
        except NodeagentError as error:
            return False, error
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        try:
            await session.serve(reader, writer)
        except NodeagentError as error:
            return session.synchronized, error
        except OSError as error:
            return session.synchronized, UnreachableError(f"the connection to the runtime broke: {_reason(error)}")
        finally:
            writer.transport.abort()  # what is still unsent is for nobody

    def _delay(self, failures: int) -> float:
        """Return the seconds to wait: short after a connection that worked, longer the longer it does not."""
        most = min(self._settings.longest_delay, self._settings.first_delay * 2 ** min(failures, 16))
        return random.uniform(most / 2, most)  # noqa: S311  # spreads the load, keeps no secret


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
