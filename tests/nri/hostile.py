"""A socket that says whatever a test wants, and the frames to say."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from nodeagent.nri import messages
from nodeagent.nri.frames import Frame, Kind, Service, encode
from nodeagent.nri.session import PLUGIN


@asynccontextmanager
async def speaker(path: Path, lines: Sequence[bytes], *, stays: bool = False) -> AsyncIterator[asyncio.Event]:
    """Say *lines*, one a connection, and close it or stay; give what is set when somebody comes for one more."""
    left = list(lines)
    heard = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if not left:
            heard.set()
            return
        with contextlib.suppress(OSError):
            writer.write(left.pop(0))
            await reader.read(-1 if stays else 4096)  # what is closed with something unread in it is reset
            writer.close()

    server = await asyncio.start_unix_server(speak, path)
    try:
        yield heard
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


def request(method: str, payload: bytes = b"", stream: int = 1) -> bytes:
    message = messages.Request(service=PLUGIN, method=method, payload=payload)
    return encode(Frame(Service.PLUGIN, stream, Kind.REQUEST, message.SerializeToString()))


def answer(code: int = 0, text: str = "", stream: int = 1) -> bytes:
    status = messages.Status(code=code, message=text)
    return encode(Frame(Service.RUNTIME, stream, Kind.RESPONSE, messages.Response(status=status).SerializeToString()))


def inventory(**fields: object) -> bytes:
    return messages.SynchronizeRequest(**fields).SerializeToString()
