"""The programmer itself: from a proven namespace and a rule set to rules in the kernel.

It lives in a process of its own (:mod:`nodeagent.programmer.process`) that has a
:class:`~nodeagent.netns.home.Home`.  It promises: it looks before it writes, and writes only
what differs; a rule set is encoded once and replayed from then on; nothing is encoded while
visiting a namespace.  It refuses a namespace that another proxy redirects already.

Another programmer (a command line beside the agent) may be at work in the same namespace.
Within one backend the later one wins: each replacement is atomic.  Where one goes by nft and
the other by legacy tables, and neither saw the other when it looked, both look again after
their write, and nft stays: who wrote it removes the legacy rules, who wrote those takes them
back and says so.  Whoever ends last has seen its own rules stand alone.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from socket import socket
from typing import Literal

import structlog

from nodeagent.errors import BusyError, KernelError, NodeagentError
from nodeagent.model import BackendName, ChangeKind, Hook, KernelState, Plan, Program, Reading, Redirect, RuleSet
from nodeagent.netlink import Close
from nodeagent.netns import conntrack, kernel
from nodeagent.netns.home import Home, Place
from nodeagent.netns.listeners import families_listening
from nodeagent.plan import make_plan
from nodeagent.programmer.backend import Backend
from nodeagent.programmer.seam import (
    Applied,
    Choice,
    Cleared,
    Expected,
    Observation,
    Recognised,
    Target,
    refusal,
)
from nodeagent.programmer.standing import Standing

_CACHED_PROGRAMS = 256
_ZONE_CHAINS = ("/zone_out", "/raw/NODEAGENT_OUTPUT")
_OTHER = {BackendName.NFT: BackendName.LEGACY, BackendName.LEGACY: BackendName.NFT}
_ATTEMPTS = 3
_MOST_AHEAD = 16
_OTHER_USER = (
    "the namespace belongs to another user namespace (hostUsers: false), and there the kernel lets nobody from "
    "outside write legacy rules that match owners"
)


@dataclass(frozen=True, slots=True)
class _Survey:
    """What both backends found in one netns, and which of them is in charge."""

    readings: Mapping[BackendName, Reading]
    backend: BackendName

    @property
    def found(self) -> Reading:
        return self.readings[self.backend]

    @property
    def other(self) -> Reading:
        return self.readings[_OTHER[self.backend]]

    @property
    def foreign(self) -> tuple[str, ...]:
        return tuple(name for reading in self.readings.values() for name in reading.foreign)

    def plan(self, program: Program | None) -> Plan:
        return make_plan(program, self.found, self.backend, self.other.state)


class NetnsProgrammer:
    """Programs the namespaces of this kernel; see :class:`~nodeagent.programmer.seam`."""

    def __init__(self, home: Home, backends: Mapping[BackendName, Backend], close: Close = socket.close) -> None:
        """*close* closes conntrack's sockets; see :class:`nodeagent.nft.closer.Closer`."""
        self._home = home
        self._close = close
        self._backends = backends
        self._no_nft = backends[BackendName.NFT].available()  # asked at home: no visit may wait for it
        self._programs: OrderedDict[tuple[BackendName, str], Program] = OrderedDict()
        self._encoding: dict[tuple[BackendName, str], Future[Program]] = {}
        self._standing = Standing([b for b in backends.values() if not (b.name is BackendName.NFT and self._no_nft)])

    def backends(self) -> dict[BackendName, str | None]:
        """Say for each backend why this node cannot use it, or None if it can."""
        return {name: backend.available() for name, backend in self._backends.items()}

    def observe(self, target: Target, ruleset: RuleSet | None, choice: Choice) -> Observation:
        """Read back, compare with *ruleset* (None: nothing of ours should stand)."""
        while True:
            with self._visit(target) as place:
                survey = self._survey(place, choice, _proxy_port(ruleset), writes=ruleset is not None)
            program = self._cached(survey.backend, ruleset)
            if program or ruleset is None:
                return _observation(place, survey, program)
            self._encode(survey.backend, ruleset)

    def apply(self, target: Target, ruleset: RuleSet, choice: Choice) -> Applied:
        """Make *target* hold *ruleset*, atomically per table; nothing happens if it does."""
        found: Observation | None = None
        attempts = 0
        while attempts < _ATTEMPTS:
            with self._visit(target) as place:
                survey = self._survey(place, choice, _proxy_port(ruleset), writes=True)
                if survey.foreign:
                    raise refusal(target, survey.foreign)
                program = self._cached(survey.backend, ruleset)
                if program:
                    found = found or _observation(place, survey, program)
                    remaining = self._converge(survey, program)
                    if _is_done(remaining):
                        return Applied(found, remaining)
                    attempts += 1
            if not program:
                self._encode(survey.backend, ruleset)
        message = f"others changed our rules in {target.netns} {_ATTEMPTS} times while they were applied: try again"
        raise BusyError(message)

    def clear(self, target: Target, *, now: bool) -> Cleared:
        """Stop redirecting at once; remove the rest if nothing is intercepted any more."""
        with self._visit(target), ExitStack() as prepared:
            readings = self._read_both(None)
            ours = [self._backends[name] for name, reading in readings.items() if reading.state]
            if not ours:
                return Cleared(removed=True, intercepted=0)
            for backend in ours:
                prepared.enter_context(backend.ready_to_remove())
            _each(ours, "stop")
            self._forget_dns()
            intercepted = 0 if now else conntrack.count_intercepted(self._close)
            if intercepted:
                return Cleared(removed=False, intercepted=intercepted)
            _each(ours, "remove")
            return Cleared(removed=True, intercepted=0)

    def recognise(self, pods: Sequence[Expected], rulesets: Mapping[str, RuleSet]) -> list[Recognised | None]:
        """Say of each pod what an agent that starts has to know, if all is in order there."""
        return [self._recognise(pod, rulesets[pod.ruleset_id]) for pod in pods]

    def _recognise(self, pod: Expected, ruleset: RuleSet) -> Recognised | None:
        try:
            number = self.watch(pod.target)  # before the look: what changes from now on is heard of
            with self._visit(pod.target) as place:
                marks = self._standing.mark()
                survey = self._survey(place, pod.choice, pod.proxy_port, writes=True)
                interfaces = kernel.interfaces()
            if not self._cached(survey.backend, ruleset):
                self._encode(survey.backend, ruleset)
        except (NodeagentError, OSError):
            return None
        if not self._is_in_order(survey, pod):
            return None
        self._standing.keep(place.cookie, pod, marks)
        return Recognised(ruleset.id, survey.backend, place.cookie, number, interfaces)

    def sweep(self, pods: Sequence[Expected]) -> list[bool]:
        """Say of each pod whether it holds its rule set, and nothing foreign is in the way."""
        return [self._holds(pod) for pod in pods]

    def _holds(self, pod: Expected) -> bool:
        try:
            with self._visit(pod.target) as place:
                if self._standing.stands(place.cookie, pod):
                    return True
                marks = self._standing.mark()  # before the look: what is written meanwhile is another mark
                survey = self._survey(place, pod.choice, pod.proxy_port, writes=True)
        except (NodeagentError, OSError):
            return False
        if not self._is_in_order(survey, pod):
            return False
        self._standing.keep(place.cookie, pod, marks)
        return True

    def _is_in_order(self, survey: _Survey, pod: Expected) -> bool:
        program = self._programs.get((survey.backend, pod.ruleset_id))
        return program is not None and not survey.foreign and not survey.plan(program)

    def watch(self, target: Target) -> int:
        """Return the number that events from the target's netns will carry."""
        return self._home.number(target.netns, target.addresses, target.cookie)

    def prepare(self, ruleset: RuleSet, choice: Choice) -> None:
        """Begin to encode *ruleset*, in a thread that stays at home, for the backend that most pods go by."""
        backend = BackendName.LEGACY if choice is Choice.LEGACY or self._no_nft else BackendName.NFT
        key = (backend, ruleset.id)
        if self._cached(backend, ruleset) or key in self._encoding or len(self._encoding) >= _MOST_AHEAD:
            return
        thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._encoding[key] = thread.submit(self._backends[backend].encode, ruleset)
        thread.shutdown(wait=False)

    def interfaces(self, target: Target) -> dict[int, str]:
        """Return the names of the target's network devices, by number."""
        with self._visit(target):
            return kernel.interfaces()

    def tracked(self, target: Target) -> tuple[int, int]:
        """Return how many connections the target's netns tracks, and how many it may; zeros where it tracks none."""
        with self._visit(target):
            return conntrack.usage()

    def listening(self, target: Target, port: int) -> list[int]:
        """Return the IP versions in which somebody in the target's netns answers at *port* of loopback, over TCP."""
        with self._visit(target):
            return list(families_listening(port, self._close))

    def events(self) -> int:
        """Return a descriptor of a netlink socket that hears of all nft changes in numbered namespaces."""
        return self._home.listen()

    # -- one step each ----------------------------------------------------------------------

    def _visit(self, target: Target) -> AbstractContextManager[Place]:
        return self._home.visit(target.netns, target.addresses, target.cookie)

    def _survey(self, place: Place, choice: Choice, port: int | None, *, writes: bool) -> _Survey:
        readings = self._read_both(port)
        no_legacy = _OTHER_USER if writes and not place.same_user else None  # looking and removing work there
        lacks = {BackendName.NFT: self._no_nft, BackendName.LEGACY: no_legacy}
        return _Survey(readings, _choose(choice, readings, lacks))

    def _read_both(self, port: int | None) -> Mapping[BackendName, Reading]:
        return {name: self._read(name, port) for name in _OTHER}

    def _read(self, name: BackendName, port: int | None = None) -> Reading:
        if name is BackendName.NFT and self._no_nft:
            return Reading()
        return self._backends[name].read(port)  # the legacy one knows nothing of a table that is not there

    def _converge(self, survey: _Survey, program: Program) -> Plan:
        """Write what the plan asks for, remove what the other backend holds; return what remains to be done.

        The kernel acknowledges each replacement as a whole, so it is read back only where
        somebody else's rules, or ours in the other backend, may still stand in the way.
        """
        plan = survey.plan(program)
        if not plan:
            return plan
        backend, other = (self._backends[name] for name in (survey.backend, _OTHER[survey.backend]))
        with ExitStack() as prepared:
            if survey.other.state:
                prepared.enter_context(other.ready_to_remove())
            backend.write(program, survey.found.state)
            moved = survey.other.state or self._read(other.name).state
            if moved and _is_done(make_plan(program, backend.read(), survey.backend)):  # else theirs replaced ours
                self._remove_other(survey, backend, other)
        if any(map(_captures_dns, (program.state, survey.found.state, moved))):
            self._forget_dns()
        if moved or survey.found.ahead:
            return make_plan(program, backend.read(), survey.backend)
        return Plan(survey.backend, program.ruleset_id)

    def _remove_other(self, survey: _Survey, backend: Backend, other: Backend) -> None:
        """Leave rules in one backend only: in *backend*, unless another programmer has just written nft's.

        Raises:
            BusyError: it has.
            NodeagentError: the other rules cannot be removed; the message says what stands.
        """
        overtaken = other.name is BackendName.NFT and not survey.other.state
        kept, gone = (other, backend) if overtaken else (backend, other)
        try:
            gone.remove()
        except NodeagentError as error:
            message = (
                f"rules by {kept.name} are in place and redirect, but removing those by {gone.name} failed: {error}"
            )
            raise error.saying(message) from error
        if overtaken:
            message = (
                "another programmer wrote rules by nft meanwhile: they stay, ours by legacy were removed; try again"
            )
            raise BusyError(message)

    def _forget_dns(self) -> None:
        """Let new rules hold for open UDP sockets; where that cannot be, they hold for new ones."""
        try:
            conntrack.forget_dns(self._close)
        except KernelError as error:
            structlog.get_logger().warning("open UDP sockets keep their path for a while", error=str(error))

    def _cached(self, backend: BackendName, ruleset: RuleSet | None) -> Program | None:
        if ruleset is None:
            return None
        key = (backend, ruleset.id)
        if key in self._encoding and self._encoding[key].done():
            self._take(key)
        if key not in self._programs:
            return None
        self._programs.move_to_end(key)
        return self._programs[key]

    def _encode(self, backend: BackendName, ruleset: RuleSet) -> None:
        key = (backend, ruleset.id)
        if key in self._encoding and self._take(key):
            return
        try:
            self._programs[key] = self._backends[backend].encode(ruleset)
        except KernelError as error:
            message = f"backend {backend}: {error}"
            raise KernelError(message) from None
        self._bound()

    def _take(self, key: tuple[BackendName, str]) -> bool:
        """Wait for what is being encoded; say whether there is anything to be had of it: if not, it is tried again."""
        with suppress(NodeagentError, OSError):
            self._programs[key] = self._encoding[key].result()
        del self._encoding[key]
        self._bound()
        return key in self._programs

    def _bound(self) -> None:
        while len(self._programs) > _CACHED_PROGRAMS:
            self._programs.popitem(last=False)


def _choose(
    choice: Choice, readings: Mapping[BackendName, Reading], lacks: Mapping[BackendName, str | None]
) -> BackendName:
    """Go where we are already, else where the netns' own rules are, else nft; never where it cannot be.

    Raises:
        KernelError: *lacks* says why it cannot be done by *choice*, or by any.
    """
    nft, legacy = BackendName.NFT, BackendName.LEGACY
    if choice is not Choice.AUTO:
        candidates = [BackendName(choice.value)]
    elif not readings[nft].state and (readings[legacy].state or readings[legacy].in_use):
        candidates = [legacy, nft]
    else:
        candidates = [nft, legacy]
    possible = [name for name in candidates if not lacks[name]]
    if possible:
        return possible[0]
    reasons = "; ".join(f"backend {name} is not available here: {lacks[name]}" for name in candidates)
    advice = "; use the nft backend" if candidates == [legacy] and not lacks[nft] else ""
    message = f"{reasons}{advice}: nothing was changed"
    raise KernelError(message)


def _each(backends: Sequence[Backend], verb: Literal["stop", "remove"]) -> None:
    """Do it to all of them; where one fails, say for which it is done."""
    done: list[str] = []
    for backend in backends:
        try:
            backend.stop() if verb == "stop" else backend.remove()
        except NodeagentError as error:
            before = f"; {verb} is done for backend {done[0]}" if done else ""
            message = f"cannot {verb} the rules of backend {backend.name}: {error}{before}"
            raise error.saying(message) from error
        done.append(backend.name)


def _is_done(plan: Plan) -> bool:
    """Say whether ours stand as they should, apart from what runs ahead of them."""
    return all(change.kind is ChangeKind.AHEAD for change in plan.changes)


def _captures_dns(state: KernelState | None) -> bool:
    """Say whether the rules of *state* have zones for DNS, and so capture it."""
    return state is not None and any(chain.endswith(_ZONE_CHAINS) for chain in state.chains)


def _observation(place: Place, survey: _Survey, program: Program | None) -> Observation:
    ruleset_id = survey.found.ruleset_id or survey.other.ruleset_id
    return Observation(survey.plan(program), place.cookie, ruleset_id, survey.foreign)


def _proxy_port(ruleset: RuleSet | None) -> int | None:
    """Return the port that the last redirect, the general one, goes to."""
    rules = ruleset.chain(Hook.REDIRECT) if ruleset else ()
    ports = [rule.action.port for rule in rules if isinstance(rule.action, Redirect)]
    return ports[-1] if ports else None
