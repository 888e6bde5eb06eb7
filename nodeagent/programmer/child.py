"""The child's side of the seam: what :mod:`nodeagent.programmer.process` starts.

Apart from the client, because whoever only asks need not have all of this in memory.
"""

import contextlib
import os
import socket
import sys
import time
import traceback
from functools import lru_cache
from pathlib import Path

import msgspec
import structlog

from nodeagent.compile.canonical import from_json
from nodeagent.errors import BusyError, InputError, InternalError, KernelError, NodeagentError, RefusedError, printable
from nodeagent.legacy import LegacyBackend
from nodeagent.log import Logging, configure_logging
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


def serve(sock: socket.socket, served: Served) -> None:
    """Answer requests until the other side closes."""
    while (data := wire.receive(sock)) is not None:
        reply, result = _reply(served, data)
        wire.send(sock, reply)
        if isinstance(result, Handed):
            wire.send_descriptor(sock, result.descriptor)
            os.close(result.descriptor)


def _reply(served: Served, data: bytes) -> tuple[wire.Success | wire.Failure, object]:
    begin = time.monotonic()
    log = structlog.get_logger()
    try:
        request = _decode(data)
        log = log.bind(verb=type(request).__struct_config__.tag, netns=_netns(request))
        result = answer(served, request, _load)
        encoded = msgspec.Raw(msgspec.json.encode(result))
    except BusyError as error:  # whoever asked asks again, and says so once
        log.debug("busy", message=str(error))
        return wire.Failure(type(error).__name__, str(error)), None
    except NodeagentError as error:
        log.info("refused", error=type(error).__name__, message=str(error))
        return _failure(error), None
    except OSError as error:
        log.info("failed", error=str(error))
        return wire.Failure(KernelError.__name__, f"the kernel refused: {error}"), None
    except Exception as error:  # noqa: BLE001  # one pod's request must not end the service for all others
        log.error("internal error", error=repr(error), where=_where(error))  # noqa: TRY400  # a traceback is no one-line value
        said = f"internal error of the programmer: {printable(repr(error))}: diff tells what stands; please report this"
        return wire.Failure(InternalError.__name__, said), None
    log.info("done", milliseconds=round((time.monotonic() - begin) * 1e3, 2))
    return wire.Success(encoded), result


def _failure(error: NodeagentError) -> wire.Failure:
    reason = error.reason if isinstance(error, RefusedError) else None
    return wire.Failure(type(error).__name__, str(error), reason)


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


def main(descriptor: int, logging: Logging) -> None:
    """Settle in an empty namespace, say so, serve."""
    configure_logging(logging)
    with socket.socket(fileno=descriptor) as sock, contextlib.suppress(BrokenPipeError):
        try:
            home = Home()
            close = Closer()  # its thread lives in the empty namespace, like everything here
            backends = {b.name: b for b in (NftBackend(close), LegacyBackend())}
            programmer = NetnsProgrammer(home, backends, close)
        except NodeagentError as error:
            wire.send(sock, _failure(error))
            return
        wire.send(sock, wire.Success(msgspec.Raw(b"{}")))
        counting = KernelCounting()
        serve(sock, Served(programmer, counting, VethGuards(home, lambda: counting.guard)))


if __name__ == "__main__":
    main(int(sys.argv[1]), Logging(*sys.argv[2:]))
