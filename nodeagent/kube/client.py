"""HTTP to the API server: requests that end, streams of lines that may not, and errors that say what to do next.

Promises: every wait has an end; a server that has gone without a word is noticed by TCP itself within half a minute;
answers and lines are bounded.  Refuses to retry: when to try again is for the caller, who knows what the answer is for.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import msgspec

from nodeagent.errors import NodeagentError, UnreachableError, printable
from nodeagent.kube.access import Access, Load

LARGEST_ANSWER: Final = 256 * 1024 * 1024
"""Bytes of an answer: a list of all pods of a node that has far too many."""
LARGEST_LINE: Final = 16 * 1024 * 1024
"""Bytes of a line: etcd takes objects of 1.5 MB, and JSON spells them longer."""

_LARGEST_REFUSAL = 64 * 1024
_LONGEST_RETRY_AFTER = 600.0
_CONNECTIONS = 4


class UnavailableError(UnreachableError):
    """No answer, or none now: try again later, after ``retry_after`` seconds if the server said so.

    ``status`` is HTTP's, 0 where there was none.
    """

    def __init__(self, message: str, retry_after: float | None = None, status: int = 0) -> None:
        super().__init__(message)
        self.retry_after, self.status = retry_after, status


class ExpiredError(NodeagentError):
    """The server no longer knows that version: begin with a list."""


class DeniedError(NodeagentError):
    """We are not known, or may not do that: tell the operator, and try again much later."""


class RequestError(NodeagentError):
    """The server does not take such a request; ``status`` is HTTP's.  The same one will not do better."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds.

    ``answer``: until an answer has begun, and for each part of it.  ``keepalive``: until TCP asks whether the
    other side is there; ``probe``: between two such questions, the third of which is the last.
    """

    connect: float = 10.0
    answer: float = 30.0
    keepalive: int = 15
    probe: int = 5


class _Details(msgspec.Struct, frozen=True, rename="camel"):
    retry_after_seconds: int | None = None


class Status(msgspec.Struct, frozen=True):
    """Kubernetes' own description of what went wrong."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None


class Client:
    """Speaks to the API server for which *load* gives credentials; an asynchronous context manager."""

    def __init__(self, load: Load, patience: Patience = Patience()) -> None:
        self._load, self._patience = load, patience
        self._access: Access | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all connections."""
        if self._session:
            await self._session.close()
        self._session = None

    async def request(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: object = None, kind: str = "json"
    ) -> bytes:
        """Return the answer's body; *body* is sent as JSON, of the media type ``application/KIND``.

        Raises:
            NodeagentError: one of the errors of this module.
        """
        data = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"Content-Type": f"application/{kind}"}
        async with self._answered(method, path, query, data, headers) as answer:
            return await self._read(answer, LARGEST_ANSWER)

    async def lines(self, path: str, query: Mapping[str, str], silence: "Silence") -> AsyncGenerator[bytes, None]:
        """Yield the lines of an endless answer, until the server ends it; b"" once it has begun.

        Raises:
            UnavailableError: nothing came for as long as *silence* allows.
            NodeagentError: one of the other errors of this module.
        """
        async with self._answered("GET", path, query, None, {}) as answer:
            yield b""
            rest = bytearray()
            while chunk := await self._chunk(answer, silence.seconds):
                rest += chunk
                if len(rest) > LARGEST_LINE:
                    raise UnavailableError(f"a line of more than {LARGEST_LINE} bytes: is this an API server?")
                if b"\n" in chunk:
                    *whole, rest = rest.split(b"\n")
                    for line in whole:
                        yield bytes(line)

    # -- one answer -----------------------------------------------------------------------------

    @asynccontextmanager
    async def _answered(
        self, method: str, path: str, query: Mapping[str, str] | None, data: bytes | None, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Give the answer, whose status is good, for the length of the block."""
        session, access = await self._opened()
        try:
            async with asyncio.timeout(self._patience.answer):
                answer = await session.request(
                    method,
                    access.server + path,
                    params=query,
                    data=data,
                    headers={"Accept": "application/json", **access.headers(), **headers},
                    ssl=access.tls,
                    server_hostname=access.server_name,
                    proxy=access.proxy,
                    allow_redirects=False,
                )
        except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError
            raise UnavailableError(f"the API server at {access.server} cannot be reached: {_why(error)}") from None
        try:
            if answer.status >= 300:  # noqa: PLR2004  # HTTP's own
                await self._refused(answer)
            yield answer
        except aiohttp.ClientError as error:
            raise UnavailableError(f"the API server's answer was cut off: {_why(error)}") from None
        finally:
            # One that was read to its end has given its connection back; to say goodbye on another may take for ever.
            if answer.connection and answer.connection.transport:
                answer.connection.transport.abort()
            answer.close()

    async def _opened(self) -> tuple[aiohttp.ClientSession, Access]:
        if self._access is None:
            self._access = Access(await self._load())
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=_CONNECTIONS, socket_factory=self._socket)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._patience.connect)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session, self._access

    def _socket(self, found: Any) -> socket.socket:  # noqa: ANN401  # an entry of getaddrinfo, whose type is aiohttp's
        """Make a socket that notices a peer that has gone without a word: idle, or in the middle of a request."""
        family, kind, protocol, _, _ = found
        sock = socket.socket(family, kind, protocol)
        patience = self._patience
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, patience.keepalive)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, patience.probe)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        milliseconds = (patience.keepalive + 3 * patience.probe) * 1000
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        return sock

    async def _chunk(self, answer: aiohttp.ClientResponse, seconds: float) -> bytes:
        try:
            async with asyncio.timeout(seconds):
                return await answer.content.readany()
        except TimeoutError:
            raise UnavailableError(f"the API server said nothing for {seconds:.0f} s") from None

    async def _read(self, answer: aiohttp.ClientResponse, most: int) -> bytes:
        found = bytearray()
        while chunk := await self._chunk(answer, self._patience.answer):
            found += chunk
            if len(found) > most:
                raise UnavailableError(f"an answer of more than {most} bytes: is this an API server?")
        return bytes(found)

    async def _refused(self, answer: aiohttp.ClientResponse) -> None:
        """Raise the error for a bad status."""
        try:
            status = msgspec.json.decode(await self._read(answer, _LARGEST_REFUSAL), type=Status)
        except (msgspec.MsgspecError, UnicodeDecodeError, UnavailableError):
            status = Status()  # a proxy in between has words of its own
        if answer.status == 401:  # noqa: PLR2004
            self._access = None  # who we are may have changed: find out anew
        raise error_of(
            Status(answer.status, status.reason, status.message or str(answer.reason), status.details),
            _retry_after(answer.headers.get("Retry-After")),
        )


@dataclass(slots=True)
class Silence:
    """How long a stream may say nothing; it may be changed while the stream is read."""

    seconds: float


def error_of(status: Status, retry_after: float | None = None) -> NodeagentError:
    """Return the error whose class says what to do about *status*."""
    message = f"the API server says {status.code} {printable(status.reason or status.message, 300)}"
    if status.reason and status.message:
        message += f": {printable(status.message, 300)}"
    match status.code:
        case 410:
            return ExpiredError(message)
        case 401 | 403:
            return DeniedError(message)
        case 408 | 429 | 500 | 502 | 503 | 504:
            if retry_after is None and status.details and status.details.retry_after_seconds:
                retry_after = min(float(status.details.retry_after_seconds), _LONGEST_RETRY_AFTER)
            return UnavailableError(message, retry_after, status.code)
        case code:
            return RequestError(message, code)


def _retry_after(text: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which is a number or a date."""
    if not text:
        return None
    try:
        if text.isascii() and text.isdigit():
            seconds = float(text)
        else:
            date = parsedate_to_datetime(text)
            seconds = date.timestamp() - date.now(date.tzinfo).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)


def _why(error: BaseException) -> str:
    return printable(str(error) or type(error).__name__, 300)
