"""The headers in bpf/ and their mirrors in Python say the same: the compiler that makes the programs compares them."""

import ctypes
import re
from collections.abc import Iterable, Iterator
from enum import IntEnum
from pathlib import Path

import pytest

from nodeagent.bpf import compiler, layout
from nodeagent.bpf.compiler import SOURCES, compile_programs
from nodeagent.bpf.layout import Answer, MapNumber, OwnerKind, Tally
from nodeagent.bpf.programs import GUARD, HOOKS, UPKEEP
from nodeagent.errors import KernelError
from nodeagent.model.flow import NETNS_POD, FlowClass, FlowFlags, FlowKind, FlowOwner, SlotState

STRUCTURES = {
    "flow_key": layout.KeyLayout,
    "flow_counters": layout.CountersLayout,
    "flow_slot": layout.SlotLayout,
    "config": layout.ConfigLayout,
    "pod": layout.PodLayout,
    "owner": layout.OwnerLayout,
    "leg": layout.LegLayout,
    "socket_state": layout.SocketLayout,
    "question": layout.QuestionLayout,
}
ENUMERATIONS: dict[str, Iterable[IntEnum]] = {
    "CLASS_": FlowClass,
    "KIND_": FlowKind,
    "SLOT_": SlotState,
    "MAP_": MapNumber,
    "TALLY_": Tally,
    "OWNED_BY_": OwnerKind,
    "": Answer,
}
FLAGS = {"OWNER_": FlowOwner, "FLAG_": FlowFlags}
NUMBERS = ("LAYOUT", "SLOTS", "PODS", "CLASSES", "RESERVED", "LEVELS", "LEGS", "QUESTION_AT", "FILLED", "TALLIES")


def claims() -> Iterator[str]:
    """Yield what the mirror says, as C expressions that must be true."""
    for name, structure in STRUCTURES.items():
        yield f"sizeof(struct {name}) == {ctypes.sizeof(structure)}"
        for field, *_ in structure._fields_:
            place = getattr(structure, field)
            yield f"__builtin_offsetof(struct {name}, {field}) == {place.offset}"
            yield f"sizeof(((struct {name} *)0)->{field}) == {place.size}"
    for prefix, members in ENUMERATIONS.items():
        yield from (f"{prefix}{member.name} == {member.value}" for member in members)
    for prefix, flags in FLAGS.items():
        yield from (f"{prefix}{flag.name} == {flag.value}" for flag in flags if flag)
    yield from (f"{name} == {getattr(layout, name)}" for name in NUMBERS)
    yield f"NETNS_POD == {NETNS_POD}ULL"


def unit(directory: Path, *claimed: str) -> Path:
    """Return a folder of sources, among them one that compiles only if all of *claimed* is true."""
    for path in SOURCES.glob("*.h"):
        (directory / path.name).write_text(path.read_text())
    asserts = "\n".join(f'_Static_assert({claim}, "not so: {claim}");' for claim in claimed)
    headers = '#include "maps.h"\n#include "upkeep.h"\n'
    (directory / "claims.c").write_text(f"{headers}{asserts}\nint claims(struct __sk_buff *skb) {{ return 0; }}\n")
    return directory


def test_every_size_offset_and_number_is_the_headers(tmp_path: Path) -> None:
    assert list(compile_programs(unit(tmp_path, *claims()), files=["claims.c"])) == ["claims"]


def test_a_claim_that_is_wrong_does_not_compile(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="not so: LAYOUT == 0"):
        compile_programs(unit(tmp_path, "LAYOUT == 0"), files=["claims.c"])


def test_no_field_is_left_out() -> None:
    text = "".join(path.read_text() for path in sorted(SOURCES.glob("*.h")))
    for name, structure in STRUCTURES.items():
        body = re.search(rf"^struct {name} \{{(.*?)^\}};", text, re.MULTILINE | re.DOTALL)
        assert body, name
        code = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
        assert re.findall(r"(\w+)(?:\[\w+\])?;", code) == [field for field, *_ in structure._fields_]


def test_every_program_compiles_and_has_its_place(tmp_path: Path) -> None:
    code = compile_programs(cache=tmp_path)
    assert set(code) == {*HOOKS, *UPKEEP, GUARD}
    assert all(instructions and not len(instructions) % 8 for instructions in code.values())


def test_what_was_compiled_once_is_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = unit(tmp_path)
    first = compile_programs(sources, tmp_path / "cache", ["claims.c"])
    monkeypatch.setattr(compiler, "_run_child", lambda *_: pytest.fail("it was compiled again"))
    assert compile_programs(sources, tmp_path / "cache", ["claims.c"]) == first


def test_a_cache_that_is_damaged_is_passed_over(tmp_path: Path) -> None:
    sources = unit(tmp_path)
    first = compile_programs(sources, tmp_path / "cache", ["claims.c"])
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text("{")
    assert compile_programs(sources, tmp_path / "cache", ["claims.c"]) == first


def test_headers_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path / "nowhere"))
    with pytest.raises(KernelError, match="nowhere"):
        compile_programs(files=["sockets.c"])
