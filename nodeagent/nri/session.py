"""One connection to a runtime: registers, answers each call within a budget, until it breaks.

Calls are taken one after the other, as a runtime makes them.  Whatever a runtime sends, this ends
with one error that says what was wrong, and never with a pod that waits for us.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

from nodeagent.errors import UnreachableError, printable
from nodeagent.nri import messages
from nodeagent.nri.calls import (
    SUBSCRIPTION,
    Asked,
    Call,
    Configure,
    ContainerEvent,
    Inventory,
    Other,
    Refused,
    SandboxEvent,
    parse,
    read_call,
)
from nodeagent.nri.frames import Decoder, Frame, Kind, ProtocolError, Service, encode
from nodeagent.nri.handler import Answer, Handler, Outcome, Runtime
from nodeagent.nri.late import Late, Work

PLUGIN = "nri.pkg.api.v1alpha1.Plugin"
RUNTIME = "nri.pkg.api.v1alpha1.Runtime"
UNIMPLEMENTED = 12
"""gRPC's code for "no such method": on it, NRI 0.12 falls back to the older way of saying the same."""

MOST_PARTS = 64
"""Messages that one inventory may come in, of at most 4 MiB each."""

NO_METHOD = "no such method"

_READ = 64 * 1024
_OUR_STREAM = 1
_NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """How the plugin names itself, and how long it waits; times are in seconds.

    A call's budget is ``budget``, or half of the time that the runtime allows, if that is less.
    ``patience`` is for what cannot take long: being synchronized, and the rest of a message.
    ``index`` is two digits, and orders the plugins of a node.
    """

    name: str = "nodeagent"
    index: str = "10"
    budget: float = 1.0
    patience: float = 30.0
    first_delay: float = 0.05
    longest_delay: float = 1.0


class Session:
    """One connection; ``synchronized`` once the runtime has told what there is, and sends events."""

    def __init__(self, handler: Handler, settings: Settings, late: Late) -> None:
        self.synchronized = False
        self._handler = handler
        self._settings = settings
        self._late = late
        self._decoder = Decoder()
        self._runtime = Runtime()
        self._inventory = Inventory()
        self._parts = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> NoReturn:
        """Register, and answer until the connection breaks.

        Raises:
            ProtocolError: the runtime does not speak the protocol, or refuses the plugin.
            UnreachableError: it closed the connection, or is silent where it should not be.
            OSError: the connection broke.
        """
        await self._send(writer, self._registration())
        while True:
            for frame in self._decoder.feed(await self._receive(reader)):
                if frame.service is Service.RUNTIME:
                    _check_registration(frame)
                else:
                    await self._serve_call(writer, frame)

    def _registration(self) -> Frame:
        register = messages.RegisterPluginRequest(plugin_name=self._settings.name, plugin_idx=self._settings.index)
        request = messages.Request(
            service=RUNTIME,
            method="RegisterPlugin",
            payload=register.SerializeToString(),
            timeout_nano=int(self._settings.patience * _NANO),
        )
        return Frame(Service.RUNTIME, _OUR_STREAM, Kind.REQUEST, request.SerializeToString())

    async def _receive(self, reader: asyncio.StreamReader) -> bytes:
        patience = None if self.synchronized and not self._decoder.partial else self._settings.patience
        data = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                data = await reader.read(_READ)
        if data is None:
            missing = "the rest of a message" if self._decoder.partial else "being synchronized"
            raise UnreachableError(f"the container runtime is silent: {patience:g} s without {missing}")
        if not data:
            raise UnreachableError("the container runtime closed the connection")
        return data

    async def _send(self, writer: asyncio.StreamWriter, frame: Frame) -> None:
        writer.write(encode(frame))
        try:
            async with asyncio.timeout(self._settings.patience):
                await writer.drain()
        except TimeoutError:
            raise UnreachableError("the container runtime does not take our answers") from None

    async def _serve_call(self, writer: asyncio.StreamWriter, frame: Frame) -> None:
        begin = time.monotonic()
        if frame.kind is not Kind.REQUEST:
            raise ProtocolError(f"a response on stream {frame.stream}, where we have asked nothing")
        request = parse(messages.Request, frame.message)
        is_ours = request.service == PLUGIN
        asked = read_call(request.method, request.payload, self._handler.keys) if is_ours else Other.UNKNOWN
        answer = await self._do(asked, self._budget(request))
        response = _response(asked).SerializeToString()
        await self._send(writer, Frame(Service.PLUGIN, frame.stream, Kind.RESPONSE, response))
        if answer:
            self._handler.answered(replace(answer, seconds=time.monotonic() - begin))
            if answer.call is Call.SYNCHRONIZE and not self.synchronized:
                self.synchronized = True
                self._handler.connected(self._runtime)

    def _budget(self, request: messages.Request) -> float:
        allowed = request.timeout_nano / _NANO / 2
        return min(self._settings.budget, allowed) if allowed > 0 else self._settings.budget

    async def _do(self, asked: Asked, budget: float) -> Answer | None:
        """Do what was asked, for *budget* seconds at most; return what to tell the handler of it."""
        match asked:
            case Configure():
                self._runtime = Runtime(*(printable(text) for text in (asked.runtime, asked.version, asked.nri)))
            case Inventory():
                return await self._synchronize(asked, budget)
            case SandboxEvent() | ContainerEvent():
                outcome, problems = await self._late.within(budget, _work(self._handler, asked))
                return Answer(asked.call, outcome, sandbox=asked.sandbox, problems=problems)
            case Refused():
                return Answer(asked.call, Outcome.REFUSED, problems=(asked.error,))
        return None

    async def _synchronize(self, part: Inventory, budget: float) -> Answer | None:
        """Collect parts; hand over the whole once it is complete."""
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise ProtocolError(f"what there is comes in more than {MOST_PARTS} parts")
        whole = self._inventory + part
        if part.more:
            self._inventory = whole
            return None
        self._inventory, self._parts = Inventory(), 0
        work = partial(self._handler.synchronize, whole.sandboxes, whole.containers)
        outcome, problems = await self._late.within(budget, work)
        return Answer(Call.SYNCHRONIZE, outcome, problems=(*whole.refused, *problems))


def _check_registration(frame: Frame) -> None:
    """Raise unless *frame* is the answer to our one request, and a good one."""
    if frame.kind is not Kind.RESPONSE or frame.stream != _OUR_STREAM:
        raise ProtocolError(f"a {frame.kind.name.lower()} on stream {frame.stream}, where an answer was expected")
    status = parse(messages.Response, frame.message).status
    if status.code:
        raise ProtocolError(f"the container runtime refuses the plugin: {printable(status.message)} ({status.code})")


def _response(asked: Asked) -> messages.Response:
    match asked:
        case Configure():
            payload = messages.ConfigureResponse(events=SUBSCRIPTION)
            return messages.Response(payload=payload.SerializeToString())
        case Inventory():
            return messages.Response(payload=messages.SynchronizeResponse(more=asked.more).SerializeToString())
        case Other.UNKNOWN:
            return messages.Response(status=messages.Status(code=UNIMPLEMENTED, message=NO_METHOD))
    return messages.Response()


def _work(handler: Handler, event: SandboxEvent | ContainerEvent) -> Work:
    if isinstance(event, ContainerEvent):
        of_container = handler.start_container if event.call is Call.START_CONTAINER else handler.remove_container
        return partial(of_container, event.sandbox, event.container)
    of_sandbox = {
        Call.RUN_SANDBOX: handler.run_sandbox,
        Call.STOP_SANDBOX: handler.stop_sandbox,
        Call.REMOVE_SANDBOX: handler.remove_sandbox,
    }
    return partial(of_sandbox[event.call], event.sandbox)
