"""The programmer's side of the seam, whatever the socket: a request is read, done, and answered.

Whatever happens to one request, the next one is answered.
"""

import os
import socket
import time
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import msgspec
import structlog

from nodeagent.compile.canonical import from_json
from nodeagent.errors import BusyError, InputError, InternalError, KernelError, NodeagentError, printable
from nodeagent.legacy import LegacyBackend
from nodeagent.model import RuleSet
from nodeagent.netns.home import Home
from nodeagent.nft import NftBackend
from nodeagent.nft.closer import Closer
from nodeagent.programmer import wire
from nodeagent.programmer.core import NetnsProgrammer
from nodeagent.programmer.counting import KernelCounting
from nodeagent.programmer.counting_wire import Handed
from nodeagent.programmer.guarding import VethGuards
from nodeagent.programmer.serving import Request, Served, answer

_CACHED_TEXTS = 256
_LOGGED_FRAMES = 5


Allow: TypeAlias = Callable[[Request], Request]
"""Returns a request as it may be done, or refuses it."""


def settle(proc: Path = Path("/proc")) -> Served:
    """Move this process into an empty network namespace, for good; return what it can do from there.

    Raises:
        KernelError: it lacks the privilege.
    """
    home = Home(proc)
    close = Closer()  # its thread lives in the empty namespace, like everything here
    backends = {b.name: b for b in (NftBackend(close), LegacyBackend())}
    programmer, counting = NetnsProgrammer(home, backends, close), KernelCounting()
    return Served(programmer, counting, VethGuards(home, lambda: counting.guard))


def serve(sock: socket.socket, served: Served) -> None:
    """Answer requests, all of them, until the other side closes."""
    while (data := wire.receive(sock)) is not None:
        respond(sock, served, data, lambda request: request)


def respond(sock: socket.socket, served: Served, data: bytes, allow: Allow) -> None:
    """Do what *data* asks for, if *allow* lets it; say what became of it.

    Raises:
        OSError: nobody takes the answer.
    """
    reply, result = _reply(served, data, allow)
    try:
        wire.send(sock, reply)
        if isinstance(result, Handed):
            wire.send_descriptor(sock, result.descriptor)
    finally:
        if isinstance(result, Handed):
            os.close(result.descriptor)


def _reply(served: Served, data: bytes, allow: Allow) -> tuple[wire.Success | wire.Failure, object]:
    begin = time.monotonic()
    log = structlog.get_logger()
    try:
        request = _decode(data)
        log = log.bind(verb=type(request).__struct_config__.tag, netns=_netns(request))
        result = answer(served, allow(request), _load)
        encoded = msgspec.Raw(msgspec.json.encode(result))
    except BusyError as error:  # whoever asked asks again, and says so once
        log.debug("busy", message=str(error))
        return wire.Failure(type(error).__name__, str(error)), None
    except NodeagentError as error:
        log.info("refused", error=type(error).__name__, message=str(error))
        return wire.failure_of(error), None
    except OSError as error:
        log.info("failed", error=str(error))
        return wire.Failure(KernelError.__name__, f"the kernel refused: {error}"), None
    except Exception as error:  # noqa: BLE001  # one pod's request must not end the service for all others
        log.error("internal error", error=repr(error), where=_where(error))  # noqa: TRY400  # a traceback is no one-line value
        said = f"internal error of the programmer: {printable(repr(error))}: diff tells what stands; please report this"
        return wire.Failure(InternalError.__name__, said), None
    log.info("done", milliseconds=round((time.monotonic() - begin) * 1e3, 2))
    return wire.Success(encoded), result


def _where(error: Exception) -> str:
    """Return the innermost frames, the last one first: ``core.py:71 apply < …``."""
    frames = reversed(traceback.extract_tb(error.__traceback__)[-_LOGGED_FRAMES:])
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)


def _netns(request: Request) -> str | None:
    target = getattr(request, "target", None)
    return str(target.netns) if isinstance(target, wire.TargetMessage) else None


def _decode(data: bytes) -> Request:
    try:
        request: Request = msgspec.json.decode(data, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"not a request that the programmer knows: {error}"
        raise InputError(message) from None
    return request


@lru_cache(_CACHED_TEXTS)
def _load(text: str) -> RuleSet:
    return from_json(text.encode())
