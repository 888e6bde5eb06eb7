"""What this kernel can count, found by loading: not by its version, and not by asking it."""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from nodeagent.bpf import loader, maps, programs, syscalls
from nodeagent.bpf.compiler import compile_programs
from nodeagent.bpf.layout import MapNumber
from nodeagent.bpf.loader import Settings
from nodeagent.bpf.programs import GUARD, HOOKS, UPKEEP
from nodeagent.errors import KernelError

_SO_NETNS_COOKIE: Final = 71


@dataclass(frozen=True)
class Finding:
    """One thing that counting uses: whether it is there, why not, and whether nothing is counted without it."""

    name: str
    works: bool
    essential: bool
    detail: str = ""


def probe(settings: Settings = Settings()) -> tuple[Finding, ...]:  # noqa: B008  # frozen
    """Try everything that counting needs, and leave nothing behind; what counts already is not disturbed."""
    return tuple(_findings(settings))


def _findings(settings: Settings) -> Iterator[Finding]:
    bpffs = settings.bpffs
    mounted = syscalls.is_bpffs(str(bpffs))
    yield Finding("bpffs", mounted, essential=True, detail="" if mounted else f"no BPF file system at {bpffs}")
    yield _tried("cgroup2", lambda: loader.probe_cgroup(settings), essential=True)
    yield _tried("netns cookie", _netns_cookie, essential=False)
    try:
        code = compile_programs(settings.sources, settings.cache)
    except KernelError as error:
        yield Finding("compiler", works=False, essential=True, detail=str(error))
        return
    yield Finding("compiler", works=True, essential=True)
    made: dict[MapNumber, int] = {}
    try:
        for number in MapNumber:
            yield _tried(f"map {number.name.lower()}", partial(_make, made, number), essential=True)
        if len(made) == len(MapNumber):
            yield from (_load(name, code[name], made) for name in (*HOOKS, *UPKEEP, GUARD))
    finally:
        programs.close_all(made.values())


def _make(made: dict[MapNumber, int], number: MapNumber) -> None:
    made[number] = maps.create(number, 1)


def _load(name: str, code: bytes, made: dict[MapNumber, int]) -> Finding:
    hook = HOOKS.get(name)
    essential = hook.essential if hook else name != GUARD
    found = _tried(f"program {name}", lambda: os.close(programs.load(name, code, made)), essential=essential)
    if hook and not found.works:
        return Finding(found.name, works=False, essential=essential, detail=f"unknown: {hook.without}; {found.detail}")
    return found


def _tried(name: str, action: Callable[[], object], *, essential: bool) -> Finding:
    try:
        action()
    except (KernelError, OSError) as error:
        return Finding(name, works=False, essential=essential, detail=str(error))
    return Finding(name, works=True, essential=essential)


def _netns_cookie() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
