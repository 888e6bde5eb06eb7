"""The programmer itself: from a proven namespace and a rule set to rules in the kernel.

It lives in a process of its own (:mod:`nodeagent.programmer.process`) that has a
:class:`~nodeagent.netns.home.Home`.  It promises: it looks before it writes, and writes only
what differs; a rule set is encoded once and replayed from then on; nothing is encoded while
visiting a namespace.  It refuses a namespace that another proxy redirects already.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from socket import if_nameindex, socket

import structlog

from nodeagent.errors import KernelError, NodeagentError, RefusedError
from nodeagent.model import BackendName, Hook, KernelState, Plan, Program, Reading, Redirect, RuleSet
from nodeagent.netlink import Close
from nodeagent.netns import conntrack
from nodeagent.netns.home import Home, Place
from nodeagent.plan import make_plan
from nodeagent.programmer.backend import Backend
from nodeagent.programmer.seam import Applied, Choice, Cleared, Expected, Observation, Target

_CACHED_PROGRAMS = 256
_ZONE_CHAINS = ("/zone_out", "/raw/NODEAGENT_OUTPUT")
_OTHER = {BackendName.NFT: BackendName.LEGACY, BackendName.LEGACY: BackendName.NFT}


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

    def backends(self) -> dict[BackendName, str | None]:
        """Say for each backend why this node cannot use it, or None if it can."""
        return {name: backend.available() for name, backend in self._backends.items()}

    def observe(self, target: Target, ruleset: RuleSet | None, choice: Choice) -> Observation:
        """Read back, compare with *ruleset* (None: nothing of ours should stand)."""
        while True:
            with self._home.visit(target.netns, target.addresses) as place:
                survey = self._survey(choice, _proxy_port(ruleset))
            program = self._cached(survey.backend, ruleset)
            if program or ruleset is None:
                return _observation(place, survey, program)
            self._encode(survey.backend, ruleset)

    def apply(self, target: Target, ruleset: RuleSet, choice: Choice) -> Applied:
        """Make *target* hold *ruleset*, atomically per table; nothing happens if it does."""
        while True:
            with self._home.visit(target.netns, target.addresses) as place:
                survey = self._survey(choice, _proxy_port(ruleset))
                _refuse_foreign(survey.foreign, target)
                program = self._cached(survey.backend, ruleset)
                if program:
                    found = _observation(place, survey, program)
                    return Applied(found, self._converge(survey, program, found.plan))
            self._encode(survey.backend, ruleset)

    def clear(self, target: Target, *, now: bool) -> Cleared:
        """Stop redirecting at once; remove the rest if nothing is intercepted any more."""
        with self._home.visit(target.netns, target.addresses):
            readings = self._survey(Choice.AUTO, None).readings
            ours = [self._backends[name] for name, reading in readings.items() if reading.state]
            if not ours:
                return Cleared(removed=True, intercepted=0)
            for backend in ours:
                backend.stop()
            self._forget_dns()
            intercepted = 0 if now else conntrack.count_intercepted(self._close)
            if intercepted:
                return Cleared(removed=False, intercepted=intercepted)
            for backend in ours:
                backend.remove()
            return Cleared(removed=True, intercepted=0)

    def sweep(self, pods: Sequence[Expected]) -> list[bool]:
        """Say of each pod whether it holds its rule set, and nothing foreign is in the way."""
        return [self._holds(pod) for pod in pods]

    def _holds(self, pod: Expected) -> bool:
        try:
            with self._home.visit(pod.target.netns, pod.target.addresses):
                survey = self._survey(pod.choice, pod.proxy_port)
        except (NodeagentError, OSError):
            return False
        program = self._programs.get((survey.backend, pod.ruleset_id))
        return program is not None and not survey.foreign and not survey.plan(program)

    def watch(self, target: Target) -> int:
        """Return the number that events from the target's netns will carry."""
        return self._home.number(target.netns)

    def interfaces(self, target: Target) -> dict[int, str]:
        """Return the names of the target's network devices, by number."""
        with self._home.visit(target.netns, target.addresses):
            return dict(if_nameindex())

    def tracked(self, target: Target) -> tuple[int, int]:
        """Return how many connections the target's netns tracks, and how many it may; zeros where it tracks none."""
        with self._home.visit(target.netns, target.addresses):
            return conntrack.usage()

    def events(self) -> int:
        """Return a descriptor of a netlink socket that hears of all nft changes in numbered namespaces."""
        return self._home.listen()

    # -- one step each ----------------------------------------------------------------------

    def _survey(self, choice: Choice, port: int | None) -> _Survey:
        nft, legacy = (self._backends[name] for name in (BackendName.NFT, BackendName.LEGACY))
        readings = {
            BackendName.NFT: Reading() if self._no_nft else nft.read(port),
            BackendName.LEGACY: legacy.read(port),  # it knows nothing of a table that is not there
        }
        return _Survey(readings, _choose(choice, readings, self._no_nft))

    def _converge(self, survey: _Survey, program: Program, plan: Plan) -> Plan:
        """Write what the plan asks for, remove what the other backend holds.

        The kernel acknowledges each replacement as a whole, so it is read back only where
        somebody else's rules, or ours in the other backend, may still stand in the way.
        """
        if not plan:
            return plan
        backend = self._backends[survey.backend]
        backend.write(program, survey.found.state)
        if survey.other.state:
            self._backends[_OTHER[survey.backend]].remove()
        if any(map(_captures_dns, (program.state, survey.found.state, survey.other.state))):
            self._forget_dns()
        if survey.found.ahead or survey.other.state:
            return make_plan(program, backend.read(), survey.backend)
        return Plan(survey.backend, program.ruleset_id)

    def _forget_dns(self) -> None:
        """Let new rules hold for open UDP sockets; where that cannot be, they hold for new ones."""
        try:
            conntrack.forget_dns(self._close)
        except KernelError as error:
            structlog.get_logger().warning("open UDP sockets keep their path for a while", error=str(error))

    def _cached(self, backend: BackendName, ruleset: RuleSet | None) -> Program | None:
        if ruleset is None or (backend, ruleset.id) not in self._programs:
            return None
        key = (backend, ruleset.id)
        self._programs.move_to_end(key)
        return self._programs[key]

    def _encode(self, backend: BackendName, ruleset: RuleSet) -> None:
        try:
            self._programs[backend, ruleset.id] = self._backends[backend].encode(ruleset)
        except KernelError as error:
            message = f"backend {backend}: {error}"
            raise KernelError(message) from None
        while len(self._programs) > _CACHED_PROGRAMS:
            self._programs.popitem(last=False)


def _choose(choice: Choice, readings: Mapping[BackendName, Reading], no_nft: str | None) -> BackendName:
    """Go where we are already, else where the netns' own rules are, else nft.

    Raises:
        KernelError: *choice* is nft, and *no_nft* says why there is none.
    """
    nft, legacy = BackendName.NFT, BackendName.LEGACY
    if choice is Choice.NFT and no_nft:
        message = f"backend nft is not available here: {no_nft}"
        raise KernelError(message)
    if choice is not Choice.AUTO:
        return BackendName(choice.value)
    if readings[nft].state:
        return nft
    return legacy if readings[legacy].state or readings[legacy].in_use or no_nft else nft


def _captures_dns(state: KernelState | None) -> bool:
    """Say whether the rules of *state* have zones for DNS, and so capture it."""
    return state is not None and any(chain.endswith(_ZONE_CHAINS) for chain in state.chains)


def _refuse_foreign(foreign: tuple[str, ...], target: Target) -> None:
    if foreign:
        message = (
            f"{target.netns} is redirected by another tool already: {', '.join(foreign)}; "
            "it is observed, never programmed: remove that redirect first"
        )
        raise RefusedError(message)


def _observation(place: Place, survey: _Survey, program: Program | None) -> Observation:
    ruleset_id = survey.found.ruleset_id or survey.other.ruleset_id
    return Observation(survey.plan(program), place.cookie, ruleset_id, survey.foreign)


def _proxy_port(ruleset: RuleSet | None) -> int | None:
    """Return the port that the last redirect, the general one, goes to."""
    rules = ruleset.chain(Hook.REDIRECT) if ruleset else ()
    ports = [rule.action.port for rule in rules if isinstance(rule.action, Redirect)]
    return ports[-1] if ports else None
