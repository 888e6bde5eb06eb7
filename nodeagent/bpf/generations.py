"""What counting keeps on the BPF file system, in a form that any version of this program can go on from.

    <bpffs>/nodeagent/counting/
        links/egress, ...                 the attachments: they change programs, and are never taken down meanwhile
        guard                             the program for the wire guard
        generation-1/pods, slots, ...     the maps, a description of their layout, and the program `carry`

A generation appears under its name when it is complete, and not before.  There is more than one only while the
counters of an old one are carried into the next (see :mod:`nodeagent.bpf.loader`).
"""

import fcntl
import json
import mmap
import os
import secrets
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from ctypes import sizeof
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nodeagent.bpf import layout, maps, programs, syscalls
from nodeagent.bpf.layout import MapNumber
from nodeagent.errors import BusyError, KernelError

_DESCRIPTION: Final = "description"
_PREFIX: Final = "generation-"
_BUILDING, _DOOMED = "building", "doomed-"
_DESCRIPTION_SIZE: Final = 8192
CARRY: Final = "carry"
_KEY_AT: Final = layout.QUESTION_AT + layout.QuestionLayout.slot.offset + layout.SlotLayout.key.offset


@dataclass(frozen=True)
class Generation:
    """One set of maps."""

    number: int
    path: Path

    def open(self, name: str) -> int:
        """Return a descriptor of what is pinned as *name*."""
        return syscalls.get(str(self.path / name))

    def maps(self) -> dict[MapNumber, int]:
        """Return descriptors of all maps."""
        return {number: self.open(_name(number)) for number in MapNumber}

    def description(self) -> dict[str, Any]:
        """Return its layout, as the version that made it described it."""
        descriptor = self.open(_DESCRIPTION)
        try:
            value = syscalls.lookup(descriptor, bytes(4), _DESCRIPTION_SIZE)
        finally:
            os.close(descriptor)
        described: dict[str, Any] = json.loads((value or b"").rstrip(b"\0"))
        return described

    def is_whole(self) -> bool:
        """Say whether all of it is pinned."""
        names = {CARRY, _DESCRIPTION, *map(_name, MapNumber)}
        return self.path.is_dir() and names <= {path.name for path in self.path.iterdir()}

    def is_ours(self) -> bool:
        """Say whether its layout is this version's."""
        return bool(self.description() == json.loads(layout.encoded_description()))

    def remove(self) -> None:
        """Unpin everything; what is attached or open lives on."""
        doomed = self.path.with_name(f"{_DOOMED}{self.number}")
        self.path.rename(doomed)  # at once: a generation is whole, or it is none
        shutil.rmtree(doomed)


class Folder:
    """``<bpffs>/nodeagent/counting``."""

    def __init__(self, bpffs: Path) -> None:
        self.path = bpffs / "nodeagent" / "counting"
        self.links = self.path / "links"
        self.guard = self.path / "guard"

    def make(self) -> None:
        """Create the directories.

        Raises:
            KernelError: no BPF file system is there, or it cannot be written.
        """
        mount = self.path.parent.parent
        if not syscalls.is_bpffs(str(mount)):
            raise KernelError(
                f"counting keeps its programs below {mount}, where no BPF file system is mounted: mount one "
                f"('mount -t bpf bpf {mount}'; in a container, mount the host's)"
            )
        try:
            for path in (self.path.parent, self.path, self.links):
                path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise KernelError(f"cannot make {self.path}: {error.strerror}") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other loaders out; a killed one lets go.

        Raises:
            BusyError: another one is at work.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BusyError(f"another process changes {self.path}: try again when it is done") from None
        try:
            yield
        finally:
            os.close(descriptor)

    def attached(self) -> tuple[str, ...]:
        """Return the names of the hooks that have a link."""
        return tuple(sorted(path.name for path in self.links.iterdir())) if self.links.is_dir() else ()

    def tidy(self) -> None:
        """Remove what a killed loader left unfinished."""
        for path in (self.path / _BUILDING, *self.path.glob(_DOOMED + "*")):
            shutil.rmtree(path, ignore_errors=True)

    def generations(self) -> list[Generation]:
        """Return the complete generations, oldest first."""
        numbers = sorted(int(path.name.removeprefix(_PREFIX)) for path in self.path.glob(_PREFIX + "*"))
        return [Generation(number, self.path / f"{_PREFIX}{number}") for number in numbers]

    def build(self, before: Generation | None, code: Mapping[str, bytes]) -> Generation:
        """Make a new generation, with the pods of the one *before*, and of its sockets what can be kept."""
        number = before.number + 1 if before else 1
        made = _new_maps(before, _era_after(before))
        try:
            with _closing(programs.load("fill", code["fill"], made)) as fill:
                for first in range(layout.RESERVED, layout.SLOTS, layout.FILLED):
                    syscalls.test_run(fill, question(first))
            return self.pin(number, made, code)
        finally:
            programs.close_all(made.values())

    def pin(self, number: int, maps_of_it: Mapping[MapNumber, int], code: Mapping[str, bytes]) -> Generation:
        """Pin a generation: its maps, what carries counts into them, and a description of both."""
        building = self.path / _BUILDING
        building.mkdir(mode=0o700)
        for which, descriptor in maps_of_it.items():
            syscalls.pin(descriptor, str(building / _name(which)))
        with _closing(programs.load(CARRY, code[CARRY], maps_of_it)) as carry:
            syscalls.pin(carry, str(building / CARRY))
        _pin_description(building / _DESCRIPTION)
        new = self.path / f"{_PREFIX}{number}"
        building.rename(new)
        return Generation(number, new)

    def remove(self) -> None:
        """Unpin everything, and detach what is attached, whoever holds it."""
        for name in self.attached():
            with suppress(OSError), _closing(syscalls.get(str(self.links / name))) as link:
                syscalls.detach_link(link)
        shutil.rmtree(self.path, ignore_errors=True)


def question(position: int, generation: int = 0, key: bytes = b"") -> bytes:
    """Return what an upkeep program is asked about the slot at *position*."""
    asked = bytearray(layout.QUESTION_AT + sizeof(layout.QuestionLayout))
    struct.pack_into("=II", asked, layout.QUESTION_AT, position, generation)
    asked[_KEY_AT : _KEY_AT + len(key)] = key
    return bytes(asked)


def _name(number: MapNumber) -> str:
    return number.name.lower()


def _era_after(before: Generation | None) -> int:
    """Return a number for maps that come after those of *before*: what is remembered of their slots fits no other.

    Where none were before, some may have been lost: it begins anywhere.
    """
    if before is None:
        return 1 + secrets.randbelow(maps.ERAS - 1)
    slot, slots = before.description()["slot"], before.open("slots")
    at, size = slot["fields"]["generation"]
    try:
        with mmap.mmap(slots, slot["size"], mmap.MAP_SHARED, mmap.PROT_READ) as memory:
            return maps.era_of(int.from_bytes(memory[at : at + size], "little")) + 1
    finally:
        os.close(slots)


def _new_maps(before: Generation | None, era: int) -> dict[MapNumber, int]:
    described = before.description() if before else {}
    ours = json.loads(layout.encoded_description())
    made: dict[MapNumber, int] = {}
    try:
        for number in MapNumber:
            if before and number is MapNumber.SOCKETS and described.get("socket") == ours["socket"]:
                made[number] = before.open(_name(number))
            else:
                made[number] = maps.create(number, era)
            if before and described.get("config") == ours["config"]:
                _copy_settings(number, before, made[number])
    except BaseException:
        programs.close_all(made.values())
        raise
    return made


_SETTINGS: Final = (MapNumber.CONFIG, MapNumber.PODS, MapNumber.SIDECARS, MapNumber.OWNERS)


def _copy_settings(number: MapNumber, before: Generation, target: int) -> None:
    if number not in _SETTINGS:
        return
    spec, source = maps.SPECS[number], before.open(_name(number))
    with _closing(source):
        for key in list(syscalls.keys_of(source, spec.key)):
            value = syscalls.lookup(source, key, spec.value)
            if value is not None:
                syscalls.update(target, key, value)


def _pin_description(path: Path) -> None:
    text = layout.encoded_description()
    descriptor = syscalls.create_map(maps.ARRAY, "na_description", (4, _DESCRIPTION_SIZE, 1), 0, (0, 0, 0))
    with _closing(descriptor):
        syscalls.update(descriptor, bytes(4), text.ljust(_DESCRIPTION_SIZE, b"\0"))
        syscalls.freeze(descriptor)
        syscalls.pin(descriptor, str(path))


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def names(generation: Generation) -> Mapping[str, Path]:
    """Return what is pinned there, by name; for tests and for people."""
    return {path.name: path for path in generation.path.iterdir()}
