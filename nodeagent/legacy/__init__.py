"""The ``legacy`` backend: iptables' own kernel tables, encoded once and replayed as bytes.

Promises, for each table: one replacement puts all of ours in place, or none; strangers' rules
keep their bytes, order and counters; a table that holds the right thing already is not
written.  Reading creates no table and loads no module.

Refuses to remove a chain that a stranger jumps to, and to write tables it cannot parse.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

import msgspec

from nodeagent.bpf.lpm import ensure_pinned
from nodeagent.compile import compile_policy
from nodeagent.compile.canonical import to_json
from nodeagent.compile.legacy import DEFAULT_BPFFS, TABLES, pin_path
from nodeagent.errors import KernelError, NodeagentError, printable
from nodeagent.legacy.encoded import Encoded, Result
from nodeagent.legacy.entries import Table, masked
from nodeagent.legacy.lock import XtablesLock
from nodeagent.legacy.mark import is_as_marked, mark_of
from nodeagent.legacy.splice import Layered, emptied, splice, take_apart
from nodeagent.legacy.state import expected_state, interpret
from nodeagent.legacy.write import Prepared, TableChange, make_all, prepare
from nodeagent.legacy.xtables import Kernel, has_family, table_names
from nodeagent.model import BackendName, Family, KernelState, Policy, Program, Reading, RuleSet

LOCK_PATIENCE: Final = 1.0
"""Seconds to wait for iptables' lock."""

_ENCODING_SECONDS: Final = 120.0
_CACHED_PAYLOADS: Final = 256
_CACHED_READINGS: Final = 512
_CACHED_BYTES: Final = 64 << 10  # of one pod's tables: who fills larger ones must not fill our memory as well

_Place = tuple[Family, str]
_PLACES: Final = tuple((family, table) for table in TABLES for family in Family)
_REMOVAL: Final = _PLACES[::-1]


class LegacyBackend:
    """A :class:`~nodeagent.programmer.backend.Backend`; holds nothing of any netns."""

    name = BackendName.LEGACY

    def __init__(self, bpffs: Path = Path(DEFAULT_BPFFS), lock_patience: float = LOCK_PATIENCE) -> None:
        """*bpffs* is where range sets are pinned, the same in every process that writes these tables."""
        self._bpffs = bpffs
        self._lock = XtablesLock(lock_patience)
        self._availability: tuple[str | None] | None = None

    def available(self) -> str | None:
        """Return None where the kernel takes a rule set of ours, else why not; asked once."""
        if self._availability is None:
            try:
                self.encode(compile_policy(Policy()))
            except NodeagentError as error:
                self._availability = (str(error),)
            else:
                self._availability = (None,)
        return self._availability[0]

    def encode(self, ruleset: RuleSet) -> Program:
        """Encode *ruleset* in one child a family; pins what its range sets need.

        Raises:
            KernelError: the kernel or iptables refuses a rule; python-iptables is missing; there
                is no BPF file system for the range sets.
        """
        for ranges in ruleset.sets:
            ensure_pinned(ranges, Path(pin_path(ranges, str(self._bpffs))))
        families = [family for family in Family if has_family(family)]
        tables = _encode(to_json(ruleset), families, self._bpffs)
        state = expected_state([take_apart(encoded.ours) for encoded in tables])
        return Program(ruleset.id, self.name, state, msgspec.msgpack.encode(tables))

    def read(self, proxy_port: int | None = None) -> Reading:
        """Return what stands in this netns; see :meth:`Backend.read`.

        Raises:
            KernelError: a table cannot be read, or is laid out in an unknown way.
        """
        tables = [masked(table) for table in _tables()]
        small = sum(len(table.entries) for table in tables) <= _CACHED_BYTES
        return (_interpret if small else _interpret.__wrapped__)(tuple(tables), proxy_port)

    def mark(self) -> Hashable | None:
        """Return all tables of this netns as they are, but for what the kernel itself alters; None if they are large.

        Raises:
            KernelError: a table cannot be read.
        """
        return mark_of(_tables())

    def stands(self, mark: Hashable) -> bool:
        """Say whether the tables of this netns are the same, and hold the same, as when *mark* was made.

        Raises:
            KernelError: a table cannot be read.
        """
        return isinstance(mark, tuple) and is_as_marked(_tables(), mark)

    def write(self, program: Program, found: KernelState | None) -> None:
        """Replace whatever of ours stands by *program*; *found* tells only whether anything may stand.

        Tables are read again under the lock.  Where nothing of ours was found, those that
        *program* has no rules for are left alone, and not even read.

        Every intermediate state sends a connection where the old or the new rules do:

        - mangle first: its permanent rule holds connection tracking, which nat needs to undo
          later what it did; alone it decides nothing;
        - raw before nat: nat without its zones lets the proxy's own DNS queries match the
          entries of those that it captured, and loop; zones without nat only label packets;
        - zones that are no longer wanted go after nat, for the same reason;
        - each table for both families in a row: what one of the kernel's tables lacks shows
          before the first redirect, and the families' nat tables change at nearly one time.
          The families share no connection, so one may have the new rules before the other.

        Raises:
            BusyError: another process held the lock, or kept changing a table.
            KernelError: refused; see :func:`~nodeagent.legacy.write.make_all` for what stands then.
            RefusedError: a stranger jumps to a chain that would go; nothing was changed.
        """
        wanted = _replays(program.payload)
        order = [place for place in _PLACES if place in wanted]
        if found is not None:
            order += [place for place in reversed(_PLACES) if place not in wanted]
        with self._changes(order, lambda place: wanted.get(place, _ABSENT)) as changes:
            make_all(changes)

    @contextmanager
    def ready_to_remove(self) -> Iterator[None]:
        """Hold the lock, and make sure that nothing of strangers' needs a chain of ours; see :class:`Backend`."""
        with self._changes(_REMOVAL, lambda _: _ABSENT):
            yield

    def stop(self) -> None:
        """Empty our nat chains; tracking and zones stay for connections that are open.

        Raises:
            BusyError, KernelError: as :meth:`write`.
        """
        with self._changes([(family, "nat") for family in Family], lambda _: _Replay(emptied)) as changes:
            make_all(changes)

    def remove(self) -> None:
        """Remove all of ours, nat first, the permanent rule last; tables that were opened stay open.

        Raises:
            BusyError, KernelError, RefusedError: as :meth:`write`.
        """
        with self._changes(_REMOVAL, lambda _: _ABSENT) as changes:
            make_all(changes)

    @contextmanager
    def _changes(
        self, order: Sequence[_Place], replay: Callable[[_Place], "_Replay"]
    ) -> Iterator[tuple[TableChange, ...]]:
        """Yield, under the lock, what brings the tables to what *replay* says; opens none for want of rules.

        Refuses before the first is written.
        """
        with ExitStack() as stack:
            stack.enter_context(self._lock.held())
            existing = {(family, name) for family in Family for name in table_names(family)}
            kernels: dict[Family, Kernel] = {}
            changes: list[TableChange] = []
            for place in order:
                wanted = replay(place)
                if place not in existing and not wanted.prepared:
                    continue
                family, name = place
                if family not in kernels:
                    kernels[family] = stack.enter_context(Kernel(family))
                absent = wanted.pristine if place not in existing else None
                change = TableChange(kernels[family], name, wanted.change, wanted.prepared, absent)
                if absent or not change.is_made():
                    changes.append(change)
            yield tuple(changes)


@dataclass(frozen=True, slots=True)
class _Replay:
    """A change to one table, and what it comes to for the tables that are most often found."""

    change: Callable[[Layered], Layered]
    prepared: Prepared = field(default_factory=dict)
    pristine: Table | None = None


_ABSENT: Final = _Replay(partial(splice, ours=None))


def _tables() -> list[Table]:
    """Return all tables that there are in this netns."""
    tables: list[Table] = []
    for family in Family:
        names = table_names(family)
        if names:
            with Kernel(family) as kernel:
                tables += [kernel.read(name) for name in names]
    return tables


@lru_cache(_CACHED_READINGS)
def _interpret(tables: tuple[Table, ...], proxy_port: int | None) -> Reading:
    """Interpret masked tables; most pods of a node hold what others hold, or held before."""
    return interpret([take_apart(table) for table in tables], proxy_port)


@lru_cache(_CACHED_PAYLOADS)
def _replays(payload: bytes) -> Mapping[_Place, _Replay]:
    """Return the replacement of each table: ready where it is untouched, else by splicing."""
    replays = {}
    for encoded in msgspec.msgpack.decode(payload, type=tuple[Encoded, ...]):
        change = partial(splice, ours=take_apart(encoded.ours))
        replacement = prepare(encoded.pristine, change)
        prepared = {
            encoded.pristine: replacement,  # untouched since it was opened: not even counters
            masked(encoded.pristine): replacement,
            masked(encoded.ours): None,
        }
        replays[encoded.ours.family, encoded.ours.name] = _Replay(change, prepared, encoded.pristine)
    return replays


# -- the children that encode ---------------------------------------------------------------------


def _encode(ruleset: bytes, families: Sequence[Family], bpffs: Path) -> tuple[Encoded, ...]:
    """Encode in one child for each family, at the same time."""
    with ExitStack() as stack:
        children = [stack.enter_context(_child(ruleset, family, bpffs)) for family in families]
        try:
            results = [_result(child) for child in children]
        finally:
            for child in children:
                child.kill()  # no effect on one that has ended
    return tuple(encoded for result in results for encoded in result.tables)


def _child(ruleset: bytes, family: Family, bpffs: Path) -> "subprocess.Popen[bytes]":
    """Start an encoder; its input is a file, so that both can run before either is waited for."""
    descriptor = os.memfd_create("ruleset")
    with os.fdopen(descriptor, "r+b") as file:
        file.write(ruleset)
        file.seek(0)
        command = [sys.executable, "-P", "-m", "nodeagent.legacy.encoder", str(int(family)), str(bpffs)]
        environment = {**os.environ, "SETUPTOOLS_USE_DISTUTILS": "stdlib"}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=file, stdout=pipe, stderr=pipe, env=environment)


def _result(child: "subprocess.Popen[bytes]") -> Result:
    try:
        output, messages = child.communicate(timeout=_ENCODING_SECONDS)
    except subprocess.TimeoutExpired:
        raise KernelError(
            f"encoding the rules took longer than {_ENCODING_SECONDS:g} s: the machine is overloaded"
        ) from None
    try:
        result = msgspec.msgpack.decode(output, type=Result)
    except msgspec.DecodeError:
        last = printable(messages.decode("utf-8", "replace").strip().rpartition("\n")[2])
        raise KernelError(f"the encoder ended with {child.returncode} and no result: {last}") from None
    if result.error:
        raise KernelError(f"cannot encode the rules for iptables: {result.error}")
    return result
