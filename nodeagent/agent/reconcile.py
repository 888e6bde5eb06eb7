"""One step of one pod: look, compare, mend.

A step begins with what is (a read-back of the netns) and ends with what the pod is now, told in
``stage`` and ``detail``.  It returns when to look again, None to leave that to the sweep.  What
must come before a write does: counting is told first (see :mod:`nodeagent.agent.enrolment`).

| found | done |
|---|---|
| hostNetwork | skipped, and nothing is opened |
| mode ``disabled``, or a pod of the cluster that is not opted in | skipped; rules of ours are cleared |
| no netns named, or none found yet | pending |
| another pod's netns | refused |
| another tool's redirect, and not all of our rules | observed: never programmed, still counted |
| mode ``observe`` | the same; rules of ours are cleared |
| annotations refused, rules of ours stand | they stay as they are |
| the plan is empty | in sync |
| the plan is not empty | applied; drift, if these rules stood before |
| the manifest has gone | cleared (drained), then forgotten |
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import structlog

from nodeagent.agent.admission import Entry, admit
from nodeagent.agent.enrolment import Enrolment
from nodeagent.agent.facts import Facts
from nodeagent.agent.pod import Pod, Source, Stage
from nodeagent.agent.roster import Roster
from nodeagent.agent.worker import AGAIN_SECONDS, Worker
from nodeagent.errors import GoneError, InputError, NodeagentError, Refusal, RefusedError, UnreachableError
from nodeagent.model import BackendName, ChangeKind, Mode, Plan, RuleSet
from nodeagent.policy import OptIn
from nodeagent.programmer.seam import Applied, Choice, Observation

_DRAIN_SECONDS = 1.0
_UNTOLD_SECONDS = 1.0
_FIRST_EPOCH = 2
_MOST_PREPARED = 1024
_RETREAT_SECONDS = 0.1
_LONGEST_RETREAT = 10.0
"""Seconds that a pod that has gone may wait until those that come are served: to forget one takes a while."""


class Reconciler:
    """Takes steps with pods of *roster*."""

    def __init__(
        self,
        worker: Worker,
        enrolment: Enrolment,
        facts: Facts,
        roster: Roster,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker, self._enrolment, self._facts = worker, enrolment, facts
        self._roster, self._clock = roster, clock
        self._prepared: set[tuple[int | None, str]] = set()

    async def recognise(self, pods: Sequence[Pod]) -> None:
        """Look at many pods with one question, those that were here before an agent or a programmer was started.

        Most of them are as they should be, and their next step has nothing more to ask; the others' look by themselves.
        """
        asked = [(pod, expected) for pod in pods if self._is_back(pod) and (expected := pod.expected(self._choice))]
        if len(asked) <= 1:
            return
        rulesets = {pod.wanted.ruleset.id: pod.wanted.ruleset for pod, _ in asked if pod.wanted.ruleset}
        with suppress(NodeagentError):
            answers = await self._worker.ask(lambda p: p.recognise([expected for _, expected in asked], rulesets))
            for (pod, _), answer in zip(asked, answers, strict=True):
                pod.seen = answer
                pod.watched = answer.number if answer else None

    def _is_back(self, pod: Pod) -> bool:
        """Say whether *pod* was here before, has not been looked at since, and may be."""
        is_old_news = pod.watched is not None or not self._enrolment.was_here(pod)
        return not (is_old_news or pod.retiring or pod.manifest.host_network or self._locate(pod))

    async def step(self, pod: Pod) -> float | None:
        """Bring *pod* one step nearer to what is wanted; return the seconds until the next one, if it needs one.

        Raises:
            NodeagentError: it could not be done; nothing or all of a write was.
        """
        try:
            wait = await self._settle(pod)
            if wait > 0:  # containers need not wait for it
                await self._enrolment.greet(pod, self._sidecar_names)
                return wait
            return await (self._retire(pod) if pod.retiring else self._advance(pod))
        finally:
            pod.seen = None  # by the next step it is no news any more

    async def _advance(self, pod: Pod) -> float | None:
        if pod.manifest.host_network:
            self._facts.refuse(pod, Refusal.HOST_NETWORK)
            self._leave_alone(pod, "uses the host's network")
            return None
        missing = self._locate(pod)
        if pod.wanted.opted and pod.wanted.skipped:
            # What the runtime alone says is too little to take away what somebody who knew more has written.
            return await self._skip(pod, pod.wanted.opted, is_here=not missing and pod.source is Source.CLUSTER)
        if pod.is_held and not missing and await self._admit(pod):
            return await self._settle(pod)
        if pod.source is not Source.DIRECTORY and pod.wanted.policy.mode is not Mode.DISABLED:
            await self._enrolment.expect(pod)
        if missing:
            self._become(pod, Stage.PENDING, missing)
            await self.prepare(pod.wanted.ruleset)
            return None
        if pod.wanted.policy.mode is Mode.DISABLED and not self._keeps(pod):
            return await self._disable(pod, "mode disabled: neither programmed nor counted")
        return await self._program(pod)

    async def prepare(self, ruleset: RuleSet | None) -> None:
        """Have encoded what a pod that is about to start will need: that takes far longer than to write it.

        Raises:
            UnreachableError: there is no programmer at the moment.
        """
        if ruleset and (self._worker.pid, ruleset.id) not in self._prepared:
            if len(self._prepared) >= _MOST_PREPARED:
                self._prepared.clear()
            self._prepared.add((self._worker.pid, ruleset.id))
            await self._worker.ask(lambda p: p.prepare(ruleset, self._choice))

    async def _admit(self, pod: Pod) -> bool:
        """Program a new pod, for which the runtime waits, by one question; say whether that was all there was to do.

        What can come after the answer (events, the names of its devices, a second look) does.
        """
        ruleset = pod.wanted.ruleset
        if ruleset is None or pod.cookie is not None:
            return False
        self._enrolment.recognise(pod)
        if pod.counted.epoch:
            return False
        before = pod.counted.told
        entry = Entry(pod.target, ruleset, self._choice, self._enrolment.announce(pod, pod.wanted.policy), before)
        others = frozenset(other.cookie for other in self._roster if other is not pod and other.cookie is not None)
        found, applied, told = await self._worker.ask(lambda p: admit(p, entry, others))
        pod.counted.told = told
        if applied is None:
            pod.counted.epoch, pod.counted.epochs = 0, {}
            return False
        pod.cookie, pod.is_known, pod.backend = found.cookie, True, found.plan.backend.value
        self._applied(pod, applied, is_drift=False)
        self._enrolment.written(pod)
        return True

    async def _program(self, pod: Pod) -> float | None:
        wanted = pod.wanted
        found = await self._look(pod, wanted.ruleset)
        await self._enrolment.enrol(pod, found, self._sidecar_names)
        await self._watch(pod)
        pod.foreign, pod.ruleset_id = found.foreign, found.ruleset_id
        pod.backend = found.plan.backend.value
        if pod.wanted is not wanted:  # an edit came meanwhile: what was found is no answer to it
            return 0.0
        again = await self._converge(pod, found)
        return _UNTOLD_SECONDS if again is None and self._enrolment.is_waiting(pod) else again

    def _locate(self, pod: Pod) -> str:
        """Find out where the pod's netns is; return what is missing, if that cannot be told yet."""
        if pod.source is Source.DIRECTORY:
            pod.lodging = None
            return "" if pod.key.netns else "no netns: name it (nodeagent.io/netns)"
        pod.lodging = self._enrolment.find_lodging(pod)
        if pod.lodging is None:
            return "no cgroup v2 directory names it on this node: it has not started yet, or has ended"
        return "" if pod.manifest.pod_ips or pod.lodging.kept else "the API server knows no address of it yet"

    async def _look(self, pod: Pod, ruleset: RuleSet | None) -> Observation:
        """Read back; nobody is programmed beside another pod, and a pod of the cluster has to be alone in its netns.

        Raises:
            RefusedError: it is not.
        """
        seen = pod.seen
        if seen and ruleset and seen.ruleset_id == ruleset.id:
            found = Observation(Plan(seen.backend, ruleset.id), seen.cookie, ruleset.id)
        else:
            found = await self._worker.ask(lambda p: p.observe(pod.target, ruleset, self._choice))
        if found.cookie != pod.cookie:
            pod.has_moved = pod.has_moved or pod.cookie is not None
            pod.cookie, pod.watched = found.cookie, pod.seen.number if pod.seen else None
        other = self._roster.holder(pod)
        if other and (pod.lodging or ruleset or other.wanted.ruleset):
            pod.cookie = None
            raise RefusedError(
                f"{pod.key} is in the network namespace of {other.key}: it is not programmed", Refusal.SHARED_NETNS
            )
        return found

    @property
    def _sidecar_names(self) -> Sequence[str]:
        return self._roster.configuration.settings.proxy.containers

    @property
    def _choice(self) -> Choice:
        return Choice(self._roster.configuration.backend)

    async def _settle(self, pod: Pod) -> float:
        transit = pod.counted.transit
        if transit is None:
            return 0
        wait = transit.due - self._clock()
        if wait <= 0:
            await self._enrolment.settle(pod)
        return wait

    async def _watch(self, pod: Pod) -> None:
        """Hear of changes; where the kernel cannot tell, the sweep finds them."""
        if pod.watched is None:
            try:
                pod.watched = await self._worker.ask(lambda p: p.watch(pod.proven))
            except UnreachableError:
                raise
            except NodeagentError as error:
                structlog.get_logger().info("no events for this pod", pod=str(pod.key), error=str(error))
                pod.watched = -1

    # -- one row of the table each --------------------------------------------------------------

    async def _converge(self, pod: Pod, found: Observation) -> float | None:
        first, pod.is_known = not pod.is_known, True
        if self._keeps(pod) and found.ruleset_id and pod.wanted.ruleset_id != found.ruleset_id:
            pod.in_sync = True
            self._become(pod, Stage.INTERCEPTED, "annotations refused: it keeps the rules that it has")
            return None
        ruleset = pod.wanted.ruleset
        if found.foreign and (found.plan or ruleset is None):
            self._facts.refuse(pod, Refusal.OTHER_TOOL)
            return await self._observe(pod, found, f"redirected by another tool: {', '.join(found.foreign)}")
        if ruleset is None:
            return await self._observe(pod, found, f"{self._why_watched(pod)}: nothing is programmed")
        if found.plan:
            return await self._apply(pod, ruleset)
        pod.in_sync = True
        self._become(pod, Stage.INTERCEPTED)
        if first:
            pod.in_force_since = self._clock()
        return await self._adopt(pod)

    def _why_watched(self, pod: Pod) -> str:
        if self._roster.configuration.settings.suspend:
            return "suspended"
        redirector = pod.wanted.opted.redirector if pod.wanted.opted else ""
        return f"its init container {redirector} redirects" if redirector else "mode observe"

    def _keeps(self, pod: Pod) -> bool:
        """Say whether its annotations are refused, and no good ones are known to us."""
        return bool(pod.rejected) and pod.good is None and not self._roster.configuration.settings.suspend

    async def _adopt(self, pod: Pod) -> float | None:
        """Let a new epoch begin where the rules stand already: an agent before us, or a policy that means the same."""
        if pod.counted.policy == pod.wanted.policy:
            pod.counted.is_recalled = False
            return None
        await self._enrolment.begin(pod, pod.wanted.policy)
        self._enrolment.written(pod)
        return await self._settle(pod)

    async def _apply(self, pod: Pod, ruleset: RuleSet) -> float | None:
        is_drift = pod.counted.policy == pod.wanted.policy and not pod.has_moved
        if is_drift and pod.counted.is_recalled:  # or an agent before us was killed before it wrote: either may be
            pod.counted.epoch -= 1
            await self._enrolment.begin(pod, pod.wanted.policy)
        elif is_drift:
            pod.in_sync = False
        else:
            await self._enrolment.begin(pod, pod.wanted.policy)
        is_first = pod.counted.following == _FIRST_EPOCH or pod.has_moved
        try:
            applied = await self._worker.ask(lambda p: p.apply(pod.proven, ruleset, self._choice))
        except UnreachableError:
            raise  # what it did is not known: the epoch stays on its way
        except NodeagentError:
            if not is_drift:
                await self._enrolment.failed(pod)
            raise
        if is_first and pod.source is not Source.DIRECTORY:
            self._note_lateness(pod)
        self._applied(pod, applied, is_drift=is_drift)
        pod.has_moved = False
        if is_drift and not pod.counted.is_recalled:
            return None
        self._enrolment.written(pod)
        return await self._settle(pod)

    def _note_lateness(self, pod: Pod) -> None:
        """Find out, after its first rules were written, whether anything else than its sandbox ran before."""
        live = self._enrolment.live_containers(pod) or frozenset()
        if not pod.is_held and len(live) > 1:
            self._facts.note_late(pod, "a container had been started when its rules came to stand")

    def _applied(self, pod: Pod, applied: Applied, *, is_drift: bool) -> None:
        changes = [change.text for change in applied.found.plan.changes]
        pod.in_sync, pod.ruleset_id = not applied.remaining, applied.found.plan.ruleset_id
        in_the_way = ", ".join(change.text for change in applied.remaining.changes)
        self._become(pod, Stage.INTERCEPTED, f"runs ahead of our rules: {in_the_way}" if in_the_way else "")
        log = structlog.get_logger().bind(pod=str(pod.key), ruleset=pod.ruleset_id)
        if is_drift and pod.in_sync and _has_mended(applied.found.plan):
            pod.repairs += 1
            self._facts.drift_repairs += 1
            log.warning("drift repaired", changes=len(changes), first=changes[0] if changes else "")
        elif not is_drift:
            seconds = self._clock() - pod.first_seen
            if pod.in_force_since is None:
                self._facts.time_to_intercept_seconds.observe(seconds)
                log = log.bind(seconds=round(seconds, 4))
            log.info("programmed", backend=applied.found.plan.backend.value, epoch=pod.counted.epoch)
            pod.in_force_since = self._clock()

    async def _observe(self, pod: Pod, found: Observation, detail: str) -> float | None:
        pod.in_sync = False
        wait = await self._withdraw(pod, found)
        if wait is None:
            self._become(pod, Stage.OBSERVED, detail)
        return wait

    def _leave_alone(self, pod: Pod, reason: str) -> None:
        pod.ruleset_id, pod.in_sync = None, False
        self._become(pod, Stage.SKIPPED, reason)

    async def _skip(self, pod: Pod, opted: OptIn, *, is_here: bool) -> float | None:
        """Take away what we may have left in a pod that is not ours; where it cannot be visited, there is nothing."""
        reason = f"{(opted.skipped or '').replace('_', ' ')}: {opted.why}"
        if is_here:
            with suppress(InputError, GoneError, RefusedError):
                return await self._disable(pod, reason)
        await self._enrolment.forget(pod)
        self._leave_alone(pod, reason)
        return None

    async def _disable(self, pod: Pod, reason: str) -> float | None:
        found = await self._look(pod, None)
        wait = await self._withdraw(pod, found)
        if wait is None:
            await self._enrolment.forget(pod)
            self._leave_alone(pod, reason)
        return wait

    async def _retire(self, pod: Pod) -> float | None:
        """Clear, drained, and forget; a netns that has gone needs no clearing."""
        wait = None
        if not pod.manifest.host_network and not self._locate(pod):
            with suppress(InputError, GoneError, RefusedError):  # it is gone, or no longer the pod's
                found = await self._look(pod, None)
                wait = await self._withdraw(pod, found)
        if wait is None:
            if self._clock() < pod.retired_at + _LONGEST_RETREAT and self._worker.rush.is_on:
                return _RETREAT_SECONDS
            if not await self._enrolment.forget_soon(pod):
                return AGAIN_SECONDS
            pod.is_gone = True
        return wait

    async def _withdraw(self, pod: Pod, found: Observation) -> float | None:
        """Take our rules away, drained; return the seconds until the next look, None if none is left.

        The epoch that begins is one of observing: what goes direct from now on is no leak.
        """
        ours = found.ruleset_id or any(change.kind is ChangeKind.EXTRA for change in found.plan.changes)
        policy = replace(pod.wanted.policy, mode=Mode.OBSERVE)
        is_new = bool(pod.counted.id) and pod.counted.policy != policy
        if is_new:
            await self._enrolment.begin(pod, policy)
        left = 0
        if ours:
            cleared = await self._worker.ask(lambda p: p.clear(pod.proven, now=False))
            pod.ruleset_id = None
            structlog.get_logger().info("cleared", pod=str(pod.key), intercepted=cleared.intercepted)
            left = 0 if cleared.removed else max(1, cleared.intercepted)
        if left:
            self._become(pod, pod.stage, f"draining: {left} intercepted connections are open")
        if is_new:
            self._enrolment.written(pod)
            return await self._settle(pod)
        return _DRAIN_SECONDS if left else None

    def _become(self, pod: Pod, stage: Stage, detail: str = "") -> None:
        if (pod.stage, pod.detail) != (stage, detail):
            structlog.get_logger().info("pod", pod=str(pod.key), stage=stage.value, detail=detail)
        pod.stage, pod.detail = stage, detail
        if stage in (Stage.INTERCEPTED, Stage.PENDING):
            pod.refused = None


def _has_mended(plan: Plan) -> bool:
    """Say whether the write was needed: nft overtakes nobody, so who ran ahead of it went by himself."""
    overtakes = plan.backend is BackendName.LEGACY
    return any(overtakes or change.kind is not ChangeKind.AHEAD for change in plan.changes)
