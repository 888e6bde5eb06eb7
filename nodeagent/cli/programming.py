"""``apply``, ``diff``, ``clear`` and ``doctor``: what touches a kernel."""

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

from nodeagent.cli.doctor import Places, examine
from nodeagent.cli.output import paint, print_json, print_table, print_warning, say
from nodeagent.cli.reading import Subject, read_accepted, read_subjects, say_warnings
from nodeagent.compile import compile_policy
from nodeagent.errors import InputError, KernelError, Refusal, RefusedError
from nodeagent.log import Logging
from nodeagent.model import BackendName, ChangeKind, Mode, Plan, RuleSet
from nodeagent.policy import Configuration
from nodeagent.programmer.memory import MemoryProgrammer, Namespace
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import Choice, Cleared, Programmer, Target, refusal

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What an apply found and did, whatever the Pod's mode; ``cleared`` is None where nothing was to be cleared."""

    mode: Mode
    found: Plan
    remaining: Plan
    written: bool
    cleared: Cleared | None = None

    def as_json(self) -> dict[str, object]:
        """Return the outcome for programs: always the same keys."""
        return {
            **_plan(self.found),
            "mode": self.mode.value,
            "applied": self.written,
            "remaining": _changes(self.remaining),
            "removed": self.cleared.removed if self.cleared else False,
            "intercepted": self.cleared.intercepted if self.cleared else None,
        }


def run_apply(arguments: argparse.Namespace) -> int:
    """Make the namespace hold what the Pod's annotations say."""
    subject, configuration = _one_accepted(arguments)
    target = _target(subject, arguments)
    choice = _choice(arguments, configuration)
    if arguments.dry_run:
        namespace = Namespace(addresses=frozenset(target.addresses))
        return _report(_look(MemoryProgrammer({target.netns: namespace}), target, subject, choice), arguments)
    with _programmer(arguments) as programmer:
        if subject.resolution.policy.mode is Mode.ENFORCE:
            return _report(_apply(programmer, target, subject, choice), arguments)
        print_warning("the Pod's mode programs nothing: rules of ours, if any, are removed")
        return _report(_withdraw(programmer, target, subject, arguments), arguments)


def _look(programmer: Programmer, target: Target, subject: Subject, choice: Choice) -> _Outcome:
    plan = programmer.observe(target, _ruleset(subject), choice).plan
    return _Outcome(subject.resolution.policy.mode, plan, replace(plan, changes=()), written=False)


def _apply(programmer: Programmer, target: Target, subject: Subject, choice: Choice) -> _Outcome:
    policy = subject.resolution.policy
    applied = programmer.apply(target, compile_policy(policy), choice)
    found = applied.found.plan
    return _Outcome(policy.mode, found, applied.remaining, written=found != applied.remaining)


def _withdraw(programmer: Programmer, target: Target, subject: Subject, arguments: argparse.Namespace) -> _Outcome:
    """Remove our rules, in whichever backend they are."""
    found = programmer.observe(target, None, Choice.AUTO).plan
    cleared = _clear(programmer, target, arguments)
    # Rules that track what is still intercepted may stay.
    remaining = replace(found, changes=()) if cleared.removed else programmer.observe(target, None, Choice.AUTO).plan
    return _Outcome(subject.resolution.policy.mode, found, remaining, found != remaining, cleared)


def _report(outcome: _Outcome, arguments: argparse.Namespace) -> int:
    """Print the outcome; return 1 if something stands that should not."""
    if arguments.output == "json":
        print_json(outcome.as_json())
    else:
        _print_plan(outcome.found)
        _print_outcome(outcome, dry_run=arguments.dry_run)
    return 1 if outcome.remaining or (outcome.cleared and not outcome.cleared.removed) else 0


def _print_outcome(outcome: _Outcome, *, dry_run: bool) -> None:
    found = outcome.found
    if outcome.cleared:
        _print_cleared(outcome.cleared)
    elif outcome.mode is Mode.ENFORCE:
        done = "would be applied" if dry_run else "applied" if found else "already there"
        say(f"rule set {found.ruleset_id}, backend {found.backend}: {done}")
        for change in outcome.remaining.changes:
            print_warning(f"runs ahead of ours and was left alone: {change.text}")
    else:
        say(f"mode {outcome.mode}: nothing would be programmed, and rules of ours, if any, would be removed")


def run_diff(arguments: argparse.Namespace) -> int:
    """Compare, change nothing; 1 if anything differs."""
    subject, configuration = _one_accepted(arguments)
    target = _target(subject, arguments)
    with _programmer(arguments) as programmer:
        found = programmer.observe(target, _ruleset(subject), _choice(arguments, configuration))
    if found.foreign and _ruleset(subject):
        raise refusal(target, found.foreign)
    if arguments.output == "json":
        print_json({**_plan(found.plan), "found": found.ruleset_id, "in_sync": not found.plan})
    else:
        _print_plan(found.plan)
        say("differs" if found.plan else paint("in sync", "good"))
    return 1 if found.plan else 0


def run_clear(arguments: argparse.Namespace) -> int:
    """Remove every rule of ours, drained."""
    subjects, _ = read_subjects(arguments)  # what it says is not needed to take rules away
    target = _target(_only(subjects), arguments)
    with _programmer(arguments) as programmer:
        return _report_cleared(_clear(programmer, target, arguments), arguments)


def _clear(programmer: Programmer, target: Target, arguments: argparse.Namespace) -> Cleared:
    deadline = time.monotonic() + (0 if arguments.now else arguments.drain_timeout)
    try:
        while True:
            cleared = programmer.clear(target, now=arguments.now)
            if cleared.removed or time.monotonic() >= deadline:
                return cleared
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        print_warning("new connections go direct, the tracking rule stays: run clear again")
        raise


def _report_cleared(cleared: Cleared, arguments: argparse.Namespace) -> int:
    if arguments.output == "json":
        print_json({"removed": cleared.removed, "intercepted": cleared.intercepted})
    else:
        _print_cleared(cleared)
    return 0 if cleared.removed else 1


def _print_cleared(cleared: Cleared) -> None:
    if cleared.removed:
        say("cleared: no rule of ours is left")
    else:
        print_warning(
            f"{cleared.intercepted} intercepted connections are still open: new ones go direct, "
            "the tracking rule stays until they end; run clear again, or --now to reset them"
        )


def run_doctor(arguments: argparse.Namespace) -> int:
    """Say what this kernel and node can do; 3 if pods cannot be programmed here at all."""
    try:
        with _programmer(arguments) as programmer:
            backends = programmer.backends()
    except KernelError as error:  # without privilege: the more reason to say what is missing
        backends = dict.fromkeys(BackendName, str(error))
    cgroup = Path(arguments.cgroup) if arguments.cgroup else None
    places = Places(Path(arguments.state_dir), Path(arguments.bpffs), cgroup, api=arguments.api)
    findings = examine(backends, places)
    if arguments.output == "json":
        print_json([finding.as_json() for finding in findings])
    else:
        rows = [(f.name, paint(*f.mark), f.detail) for f in findings]
        print_table(rows, ("what", "state", "detail"))
    return 3 if any(finding.fatal for finding in findings) else 0


# -- what they share ----------------------------------------------------------------------------


def _programmer(arguments: argparse.Namespace) -> ChildProgrammer:
    return ChildProgrammer(Logging(arguments.log_level, arguments.log_format))


def _only(subjects: list[Subject]) -> Subject:
    if len(subjects) != 1:
        message = f"{len(subjects)} Pods in the manifest, one namespace: give one Pod"
        raise InputError(message)
    return subjects[0]


def _one_accepted(arguments: argparse.Namespace) -> tuple[Subject, Configuration]:
    subjects, configuration = read_accepted(arguments)
    subject = _only(subjects)
    if subject.resolution.unknown_keys:
        unknown = subject.resolution.unknown_keys[0]
        advice = next((w for w in subject.resolution.warnings if w.startswith(unknown)), f"{unknown} is unknown")
        message = f"{subject.name}: {advice}; nothing was changed"
        raise InputError(message)
    say_warnings(subjects, configuration)
    return subject, configuration


def _target(subject: Subject, arguments: argparse.Namespace) -> Target:
    if subject.pod.host_network:
        message = f"{subject.name} uses the host's network: such a Pod is never programmed"
        raise RefusedError(message, Refusal.HOST_NETWORK)
    return Target(arguments.netns, subject.pod.pod_ips)


def _ruleset(subject: Subject) -> RuleSet | None:
    policy = subject.resolution.policy
    return compile_policy(policy) if policy.mode is Mode.ENFORCE else None


def _choice(arguments: argparse.Namespace, configuration: Configuration) -> Choice:
    return arguments.backend or Choice(configuration.backend)


def _plan(plan: Plan) -> dict[str, object]:
    return {
        "id": plan.ruleset_id,
        "backend": BackendName(plan.backend).value,
        "changes": _changes(plan),
    }


def _changes(plan: Plan) -> list[dict[str, object]]:
    return [{"kind": c.kind.value, "chain": c.chain, "position": c.position, "rule": c.text} for c in plan.changes]


_SIGNS = {
    ChangeKind.MISSING: ("+", "good"),
    ChangeKind.EXTRA: ("-", "bad"),
    ChangeKind.AHEAD: ("!", "warning"),
}


def _print_plan(plan: Plan) -> None:
    for change in plan.changes:
        sign, style = _SIGNS[change.kind]
        say(paint(f"{sign} {change.chain} {change.position}: {change.text}", style))
