"""The runtime's end of one plugin's connection: calls by number of stream, in pieces as a real one sends them."""

import asyncio
import contextlib
import itertools
import struct

from nodeagent.nri import messages
from nodeagent.nri.frames import Decoder, Frame, Kind, Service, encode
from nodeagent.nri.session import PLUGIN, RUNTIME

PIECE = 4096
"""What ttrpc's buffered writer hands to the mux at once."""


class PluginClosedError(Exception):
    """The plugin went away, or was closed for being late or wrong."""


class Link:
    """One plugin.  A call that takes longer than *timeout* closes it, as upstream does."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout: float) -> None:
        self.registered: asyncio.Future[messages.RegisterPluginRequest] = asyncio.get_running_loop().create_future()
        self.events = 0
        self.methods: list[str] = []
        self._reader = reader
        self._writer = writer
        self._timeout = timeout
        self._streams = itertools.count(1, 2)
        self._calls: dict[int, asyncio.Future[messages.Response]] = {}
        self._task = asyncio.create_task(self._read())

    @property
    def open(self) -> bool:
        return not self._task.done()

    async def call(self, method: str, payload: bytes) -> messages.Response:
        if not self.open:
            raise PluginClosedError
        self.methods.append(method)
        stream = next(self._streams)
        answer = self._calls[stream] = asyncio.get_running_loop().create_future()
        request = messages.Request(
            service=PLUGIN, method=method, payload=payload, timeout_nano=int(self._timeout * 1_000_000_000)
        )
        self.write(Frame(Service.PLUGIN, stream, Kind.REQUEST, request.SerializeToString()))
        try:
            async with asyncio.timeout(self._timeout):
                response: messages.Response = await answer
        except TimeoutError:
            self.close()
            raise PluginClosedError from None
        return response

    def write(self, frame: Frame) -> None:
        """Send *frame* in pieces of the mux, each with its own header."""
        whole = encode(frame)[8:]
        for start in range(0, len(whole), PIECE):
            piece = whole[start : start + PIECE]
            self.write_bytes(struct.pack(">II", frame.service, len(piece)) + piece)

    def write_bytes(self, data: bytes) -> None:
        self._writer.write(data)

    def close(self) -> None:
        self._writer.transport.abort()

    async def closed(self) -> None:
        await asyncio.wait({self._task})

    async def _read(self) -> None:
        decoder = Decoder()
        with contextlib.suppress(OSError):
            while data := await self._reader.read(PIECE):
                for frame in decoder.feed(data):
                    self._take(frame)
        self._writer.transport.abort()
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(PluginClosedError())
                answer.exception()  # somebody may have stopped waiting

    def _take(self, frame: Frame) -> None:
        if frame.service is Service.RUNTIME:
            request = messages.Request.FromString(frame.message)
            assert (request.service, request.method) == (RUNTIME, "RegisterPlugin")
            self.registered.set_result(messages.RegisterPluginRequest.FromString(request.payload))
            self.write(Frame(Service.RUNTIME, frame.stream, Kind.RESPONSE, b""))
        else:
            answer = self._calls.pop(frame.stream)
            if not answer.done():
                answer.set_result(messages.Response.FromString(frame.message))
