"""Put the programs of this version where those of the version before are, so that no packet is missed or counted twice.

The same layout: the new programs go onto the maps that are there, and take the old ones' places link by link.

Another layout, newer or older: a new generation of maps is made beside the one that counts, with its
pods, and its sockets if their layout is the same (else connections that are open count as unseen from
now on).  Then the links change programs; from each link's change on, packets are counted in the new
maps.  When no program of the old generation runs any more its counters stand still, and are added, slot
by slot, to the new ones.  Each addition is one run of a program, which marks the old slot as carried:
so it may be interrupted anywhere, and whoever loads next goes on with it.
"""

import errno
import mmap
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from nodeagent.bpf import programs, syscalls
from nodeagent.bpf.compiler import SOURCES
from nodeagent.bpf.generations import CARRY, Folder, Generation
from nodeagent.bpf.layout import QUESTION_AT, Answer, MapNumber
from nodeagent.bpf.programs import HOOKS, UPKEEP
from nodeagent.errors import KernelError

CGROUP2_MAGIC: Final = 0x63677270
_LINK_INFO = struct.Struct("=III4xQI")  # struct bpf_link_info: type, id, prog_id; cgroup_id, attach_type
_GONE: Final = (errno.ENOLINK, errno.ENOENT, errno.EINVAL)


@dataclass(frozen=True)
class Settings:
    """Where counting works: the BPF file system, the cgroup below which sockets are seen, and where pods' cgroups lie.

    ``levels`` are depths below the hierarchy's root; ``cgroup`` None: the root of the cgroup v2 hierarchy.
    """

    bpffs: Path = Path("/sys/fs/bpf")
    cgroup: Path | None = None
    levels: tuple[int, ...] = (2, 3, 4)
    cache: Path | None = None
    sources: Path = SOURCES


@dataclass
class Loaded:
    """What a load leaves behind: open maps, upkeep programs and links, and which hooks this kernel refused, and why.

    What is open goes on counting where somebody unpins it.
    """

    generation: Generation
    maps: dict[MapNumber, int]
    upkeep: dict[str, int]
    refused: dict[str, str] = field(default_factory=dict)
    links: dict[str, int] = field(default_factory=dict)

    def close(self) -> None:
        """Close the descriptors; everything pinned stays."""
        programs.close_all(self.maps.values())
        programs.close_all(self.upkeep.values())
        programs.close_all(self.links.values())
        self.maps, self.upkeep, self.links = {}, {}, {}


def cgroup2_mount() -> Path:
    """Return where the cgroup v2 hierarchy is mounted.

    Raises:
        KernelError: nowhere.
    """
    for line in Path("/proc/self/mounts").read_text("ascii", "replace").splitlines():
        _, where, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(where)
    raise KernelError(
        "counting needs the cgroup v2 hierarchy, which is mounted nowhere: boot with "
        "'systemd.unified_cgroup_hierarchy=1', or mount cgroup2; in a container, mount the host's /sys/fs/cgroup"
    )


def load(settings: Settings, code: Mapping[str, bytes], prepare: Callable[[Loaded], None]) -> Loaded:
    """Bring *code* into the kernel, attached and pinned; what counts already goes on counting.

    *prepare* is called when the maps are there, and before a program of this version sees a packet.

    Raises:
        KernelError: why this is impossible here.
        BusyError: another process does it at this moment.
    """
    folder = Folder(settings.bpffs)
    folder.make()
    cgroup = _open_cgroup(settings.cgroup or cgroup2_mount())
    try:
        with folder.locked():
            return _load(folder, cgroup, code, prepare)
    except OSError as error:
        raise KernelError(f"cannot count: {error.strerror or error}{_hint(error)}") from None
    finally:
        os.close(cgroup)


def _load(folder: Folder, cgroup: int, code: Mapping[str, bytes], prepare: Callable[[Loaded], None]) -> Loaded:
    folder.tidy()
    generations = folder.generations()
    current = generations[-1] if generations else None
    if current is None or not current.is_ours():
        current = folder.build(current, code)
        generations.append(current)
    maps = current.maps()
    loaded = Loaded(current, maps, {})
    try:
        for name in UPKEEP:
            loaded.upkeep[name] = programs.load(name, code[name], maps)
        prepare(loaded)
        _attach_all(folder, cgroup, code, loaded)
        _pin_guard(folder.guard, code, loaded)
        if len(generations) > 1:
            syscalls.synchronize()
            for old, new in pairwise(generations):
                _carry_all(old, new)
                old.remove()
    except BaseException:
        loaded.close()
        raise
    return loaded


def _attach_all(folder: Folder, cgroup: int, code: Mapping[str, bytes], loaded: Loaded) -> None:
    new: dict[str, int] = {}
    try:
        for name, hook in HOOKS.items():
            try:
                new[name] = programs.load(name, code[name], loaded.maps)
            except KernelError as error:
                if hook.essential:
                    raise
                loaded.refused[name] = str(error)
        for name, program in new.items():
            loaded.links[name] = _attach(folder.links / name, cgroup, program, HOOKS[name].attach_type)
        for path in folder.links.iterdir():
            if path.name not in new:
                path.unlink()
    finally:
        programs.close_all(new.values())


def _pin_guard(path: Path, code: Mapping[str, bytes], loaded: Loaded) -> None:
    try:
        program = programs.load(programs.GUARD, code[programs.GUARD], loaded.maps)
    except KernelError as error:
        loaded.refused[programs.GUARD] = str(error)
        return
    new = path.with_name("guard-new")
    try:
        new.unlink(missing_ok=True)
        syscalls.pin(program, str(new))
        new.rename(path)  # in the place of the one before
    finally:
        os.close(program)


def _attach(path: Path, cgroup: int, program: int, attach_type: int) -> int:
    """Let *program* take the place of what the link at *path* runs, or attach it there anew; return the open link."""
    if path.exists():
        link = syscalls.get(str(path))
        try:
            if _LINK_INFO.unpack_from(syscalls.object_info(link, _LINK_INFO.size))[3] == os.fstat(cgroup).st_ino:
                syscalls.update_link(link, program)
                return link
        except OSError as error:
            if error.errno not in _GONE:
                os.close(link)
                raise
        os.close(link)
        path.unlink()  # its cgroup has gone, or is not the one that is wanted
    link = syscalls.create_link(program, cgroup, attach_type)
    try:
        syscalls.pin(link, str(path))
    except BaseException:
        os.close(link)
        raise
    return link


def is_pinned(settings: Settings, loaded: Loaded) -> bool:
    """Say whether all that *loaded* left behind would outlive this process."""
    folder = Folder(settings.bpffs)
    guard = folder.guard.exists() or programs.GUARD in loaded.refused
    return guard and loaded.generation.is_whole() and loaded.links.keys() <= set(folder.attached())


def pin_again(settings: Settings, code: Mapping[str, bytes], loaded: Loaded) -> None:
    """Pin again what somebody has unpinned; nothing was lost, because all of it is open here.

    Raises:
        KernelError: why that cannot be done now.
    """
    folder = Folder(settings.bpffs)
    folder.make()
    try:
        with folder.locked():
            folder.tidy()
            if not loaded.generation.is_whole():
                if loaded.generation.path.exists():
                    loaded.generation.remove()
                loaded.generation = folder.pin(loaded.generation.number, loaded.maps, code)
            for name in loaded.links.keys() - set(folder.attached()):
                syscalls.pin(loaded.links[name], str(folder.links / name))
            if not folder.guard.exists():
                _pin_guard(folder.guard, code, loaded)
    except OSError as error:
        raise KernelError(f"cannot pin: {error.strerror or error}{_hint(error)}") from None


# -- from one generation to the next ------------------------------------------------------------


def _carry_all(old: Generation, new: Generation) -> None:
    """Add what *old* counted to *new*; nothing is added twice, however often this is begun."""
    source, target = old.description(), new.description()
    size, number = source["slot"]["size"], source["sizes"]["slots"]
    slots, program = old.open("slots"), new.open(CARRY)
    try:
        with mmap.mmap(slots, size * number, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
            for position in range(number):
                slot = memory[position * size : (position + 1) * size]
                if not _number(slot, source["slot"]["fields"]["state"]):
                    continue
                answer = Answer(syscalls.test_run(program, _question(position, slot, source, target)))
                if answer is Answer.NOT_UNDERSTOOD:
                    raise KernelError(
                        f"cannot carry over slot {position} of {old.path}: its successor does not know it"
                    )
    finally:
        os.close(slots)
        os.close(program)


def _question(position: int, slot: bytes, source: Mapping[str, Any], target: Mapping[str, Any]) -> bytes:
    """Return what *target*'s `carry` is asked: *slot*, field by field; what one of the two does not know is 0."""
    asked = bytearray(QUESTION_AT + target["question"]["size"])
    wanted: Mapping[str, Sequence[int]] = target["question"]["fields"]
    at, size = wanted["position"]
    asked[QUESTION_AT + at : QUESTION_AT + at + size] = position.to_bytes(size, "little")
    for name, (there, room) in source["slot"]["fields"].items():
        if place := wanted.get(f"slot.{name}"):
            at, size = place
            value = slot[there : there + min(size, room)]
            asked[QUESTION_AT + at : QUESTION_AT + at + len(value)] = value
    return bytes(asked)


def _number(data: bytes, place: Sequence[int]) -> int:
    at, size = place
    return int.from_bytes(data[at : at + size], "little")


# -- the surroundings ---------------------------------------------------------------------------


def probe_cgroup(settings: Settings) -> None:
    """Open the cgroup that *settings* names, or the hierarchy's root, and close it.

    Raises:
        KernelError: it is not there, or of no cgroup v2 hierarchy.
    """
    os.close(_open_cgroup(settings.cgroup or cgroup2_mount()))


def _open_cgroup(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"cannot open the cgroup {path}: {error.strerror}") from None
    if syscalls.file_system_of(str(path)) != CGROUP2_MAGIC:
        os.close(descriptor)
        raise KernelError(f"{path} is not in the cgroup v2 hierarchy, which counting attaches to")
    return descriptor


def _hint(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "; it takes CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (before Linux 5.11 CAP_SYS_RESOURCE too)"
    return "; this kernel has no bpf(2)" if error.errno == errno.ENOSYS else ""
