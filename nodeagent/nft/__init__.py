"""The ``nft`` backend: one table of our own, ``inet nodeagent``, for both families.

Works on the netns that the calling thread is in; opens a socket there for each call and closes
it again, because an open one would keep the netns alive.  Promises that a process killed at
any moment leaves the old rules or the new ones.  Never touches a table that is not ours, never
makes one to read it.
"""

import errno
import socket
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from struct import unpack_from
from typing import Final, TypeVar

from nodeagent.compile.canonical import to_json
from nodeagent.errors import BusyError, KernelError, printable
from nodeagent.model import BackendName, KernelState, Program, Reading, RuleSet
from nodeagent.netlink import InterruptedDumpError, NetlinkError, TooMuchError
from nodeagent.nft import replay
from nodeagent.nft.state import INTERCEPT, chain_attributes, dump_rules_and_sets, is_own, kernel_state, too_large
from nodeagent.nft.strangers import NatRules, named_proxies
from nodeagent.nft.wire import Kind, Message, NetfilterSocket, parse, request_name

ATTEMPTS: Final = 8
"""How often a call starts anew because somebody else changed the tables meanwhile."""

ENCODE_SECONDS: Final = 120.0
"""How long the encoding child may take: 100,000 ranges on a slow machine, and some."""

_CACHED_PAYLOADS: Final = 256

MOST_OF_OWN: Final = 2 << 20
"""Bytes of rules, or of elements, of our own table that are read in any case: five times an annotation's most."""

_ADVICE: Final = {
    errno.EPERM: "; needs CAP_NET_ADMIN in this network namespace",
    errno.EACCES: "; needs CAP_NET_ADMIN in this network namespace",
    errno.EPROTONOSUPPORT: "; this kernel has no nfnetlink (CONFIG_NETFILTER_NETLINK)",
    errno.EINVAL: "; this kernel may lack nf_tables (CONFIG_NF_TABLES) or a part of it",
    errno.EFBIG: "; are that many tables, chains or sets in this network namespace needed?",
}
_OVERTAKEN: Final = {errno.ERESTART, errno.EINTR, errno.EBUSY, errno.EAGAIN}
_T = TypeVar("_T")


class NftBackend:
    """Implements :class:`nodeagent.programmer.backend.Backend`; holds nothing of a netns between calls.

    Of a table of our name it reads no more than twice what the largest rule set that it has encoded comes to: who may
    change a pod's rules shall not have the time and memory of the others.  More is another state than any of ours.

    *close* closes a socket: a process that programs many pods gives a
    :class:`nodeagent.nft.closer.Closer`, which spares it a wait of 15 ms after each change.
    """

    name = BackendName.NFT

    def __init__(self, close: Callable[[socket.socket], None] = socket.socket.close) -> None:
        self._close = close
        self._most = MOST_OF_OWN

    def available(self) -> str | None:
        """Return None where this netns can have nf_tables, else the reason why not; changes nothing."""
        try:
            with NetfilterSocket(self._close) as netfilter:
                netfilter.dump(Kind.GETTABLE)
        except OSError as error:
            return _explain(error)
        return None

    def encode(self, ruleset: RuleSet) -> Program:
        """Encode *ruleset* in a child in a netns of its own; takes a third of a second and more.

        Raises:
            KernelError: the kernel refuses the rules; the message says which one and why.
        """
        output = _run_encoder(to_json(ruleset))
        (length,) = unpack_from("=I", output)
        payload = output[4 : 4 + length]
        self._most = max(self._most, 2 * (len(output) - length))
        state, ruleset_id = kernel_state(parse(output[4 + length :]))
        if state is None or ruleset_id not in (None, ruleset.id):
            raise KernelError(f"rule set {ruleset.id}: the kernel does not report it as written; please report this")
        return Program(ruleset.id, BackendName.NFT, state, payload)

    def read(self, proxy_port: int | None = None) -> Reading:
        """Return what stands in this netns; see :class:`nodeagent.programmer.backend.Backend`."""
        with _kernel_errors():
            # ENOENT: what the first dump named had gone at the second.
            return _until_undisturbed(lambda: self._read(proxy_port), errno.ENOENT)

    def _read(self, proxy_port: int | None) -> Reading:
        with NetfilterSocket(self._close) as netfilter:  # a new one each time: it may be left half read
            return _read(netfilter, proxy_port, self._most)

    def mark(self) -> Hashable | None:
        """Return the generation of this netns' rule set, to which each commit of anybody adds one."""
        try:
            with NetfilterSocket(self._close, explains=False) as netfilter:
                return netfilter.generation()
        except OSError:
            return None

    def stands(self, mark: Hashable) -> bool:
        """Say whether nobody has committed since *mark*."""
        return self.mark() == mark

    def write(self, program: Program, found: KernelState | None) -> None:  # noqa: ARG002  # looks for itself
        """Replace whatever of ours stands by *program*; see :class:`nodeagent.programmer.backend.Backend`.

        What is found is looked up anew, with the names that a state leaves out, and the
        kernel checks that nobody has committed since.

        Raises:
            RefusedError: the table of our name is another process's own.
        """
        encoded, wanted = _unpacked(program.payload), chain_attributes(program.state)
        with _kernel_errors(), NetfilterSocket(self._close) as netfilter:
            _until_undisturbed(lambda: replay.replay(netfilter, encoded, wanted, replay.look(netfilter)))

    @contextmanager
    def ready_to_remove(self) -> Iterator[None]:
        """Make sure that our table is ours to change; see :class:`nodeagent.programmer.backend.Backend`."""
        with _kernel_errors(), NetfilterSocket(self._close) as netfilter:
            replay.refuse_owned(netfilter)
        yield

    def stop(self) -> None:
        """Empty the chain that redirects; what keeps connections tracked stays."""
        with _kernel_errors(), NetfilterSocket(self._close) as netfilter:
            replay.stop(netfilter, INTERCEPT)

    def remove(self) -> None:
        """Delete our table; connections that are still intercepted are reset."""
        with _kernel_errors(), NetfilterSocket(self._close) as netfilter:
            replay.remove(netfilter)


@lru_cache(_CACHED_PAYLOADS)
def _unpacked(payload: bytes) -> replay.Encoded:
    return replay.Encoded.unpack(payload)


def _read(netfilter: NetfilterSocket, proxy_port: int | None, most: int) -> Reading:
    """Read once, of our table's contents not more than *most* bytes.

    Raises:
        NetlinkError: ERESTART where somebody committed between the first dump and the last.
    """
    tables = netfilter.dump(Kind.GETTABLE)
    if not tables:
        return Reading()
    chains = netfilter.dump(Kind.GETCHAIN)
    own = [m for m in (*tables, *chains) if is_own(m)]
    state: KernelState | None
    ruleset_id: str | None = None
    try:
        own += dump_rules_and_sets(netfilter, most) if own else ()
    except TooMuchError as error:
        with netfilter.another() as second:
            strangers = _strangers(second, tables, chains, own, proxy_port)
        state = too_large(str(error))
    else:
        strangers = _strangers(netfilter, tables, chains, own, proxy_port)
        state, ruleset_id = kernel_state(own)
    foreign = (*named_proxies(tables, chains), *strangers.redirecting)
    return Reading(state, ruleset_id, tuple(strangers.ahead), foreign, in_use=True)


def _strangers(
    netfilter: NetfilterSocket,
    tables: Sequence[Message],
    chains: Sequence[Message],
    own: Sequence[Message],
    proxy_port: int | None,
) -> NatRules:
    """Read the last of it, strangers' rules, and make sure that all of it is of one moment.

    Raises:
        NetlinkError: ERESTART where it is not.
    """
    strangers = NatRules(netfilter, chains, proxy_port)
    generation = netfilter.generation() & 0xFFFF  # all that a message has room for
    if {generation} != {m.generation for m in (*tables, *chains, *own)} | strangers.generations:
        raise NetlinkError(errno.ERESTART)
    return strangers


def _until_undisturbed(work: Callable[[], _T], *overtaken: int) -> _T:
    """Return what *work* returns; try again where somebody else's commit came in between."""
    for _ in range(ATTEMPTS - 1):
        try:
            return work()
        except NetlinkError as error:
            if error.errno not in (*_OVERTAKEN, *overtaken):
                raise
    return work()


@contextmanager
def _kernel_errors() -> Iterator[None]:
    """Turn the kernel's answers into the errors that say what to do next."""
    try:
        yield
    except InterruptedDumpError as error:
        raise BusyError(f"nf_tables: {error}") from error
    except OSError as error:
        if error.errno in _OVERTAKEN:
            raise BusyError(f"nf_tables: somebody else keeps changing the tables ({error}); try again later") from error
        raise KernelError(f"nf_tables: {_explain(error)}") from error


def _explain(error: OSError) -> str:
    request = request_name(error) if isinstance(error, NetlinkError) else ""
    return f"{request}{error.strerror} (errno {error.errno}){_ADVICE.get(error.errno or 0, '')}"


def _run_encoder(canonical: bytes) -> bytes:
    """Run the child from where this package was imported, whatever the current directory is."""
    command = [sys.executable, "-P", "-m", "nodeagent.nft.encoder"]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            command, input=canonical, capture_output=True, check=False, cwd=root, timeout=ENCODE_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise KernelError(
            f"nf_tables: encoding took more than {ENCODE_SECONDS:.0f} seconds; use fewer ranges"
        ) from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "backslashreplace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise KernelError(f"nf_tables: cannot encode the rules: {printable(lines[-1], limit=400)}")
    return done.stdout
