"""``uninstall``: leave this node as it was; as often as one likes, with or without an agent before."""

import argparse
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from nodeagent.cli.output import print_json, print_warning, say
from nodeagent.errors import GoneError, InputError, RefusedError
from nodeagent.log import Logging
from nodeagent.model import ChangeKind
from nodeagent.netns.find import find_namespaces
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import Choice, Programmer, Target
from nodeagent.state.lock import Lock

_POLL_SECONDS = 0.2


def run_uninstall(arguments: argparse.Namespace) -> int:
    """Stop redirecting, drain, remove every rule, pin, attachment and state; 1 if connections are still open."""
    state = Path(arguments.state_dir)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    logging = Logging(arguments.log_level, arguments.log_format)
    with Lock(state), ChildProgrammer(logging, arguments.proc) as programmer:
        targets = list(_targets(Path(arguments.proc)))
        ours = [target for target in targets if _has_rules(programmer, target)]
        left = _clear(programmer, ours, arguments)
        programmer.unguard(targets)
        programmer.stop_counting(arguments.bpffs)
        shutil.rmtree(state, ignore_errors=True)
    if arguments.output == "json":
        print_json({"cleared": len(ours) - len(left), "intercepted": sum(left.values())})
    else:
        say(f"{len(ours) - len(left)} namespaces cleared; pins, attachments and state are gone")
        for target, count in left.items():
            print_warning(f"{target.netns}: {count} intercepted connections are open; run uninstall again, or --now")
    return 1 if left else 0


def _targets(proc: Path) -> Iterable[Target]:
    return map(Target, find_namespaces(proc))


def _has_rules(programmer: Programmer, target: Target) -> bool:
    """Say whether anything of ours stands there; the host's namespace is refused, and never looked at."""
    try:
        found = programmer.observe(target, None, Choice.AUTO)
    except (RefusedError, InputError, GoneError):
        return False
    return bool(found.ruleset_id) or any(change.kind is ChangeKind.EXTRA for change in found.plan.changes)


def _clear(programmer: Programmer, targets: list[Target], arguments: argparse.Namespace) -> dict[Target, int]:
    """Clear all, drained side by side; return where connections are still open."""
    deadline = time.monotonic() + (0 if arguments.now else arguments.drain_timeout)
    left = dict.fromkeys(targets, 0)
    while True:
        for target in list(left):
            try:
                cleared = programmer.clear(target, now=arguments.now)
            except (InputError, GoneError):
                del left[target]
                continue
            left[target] = cleared.intercepted
            if cleared.removed:
                del left[target]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(_POLL_SECONDS)
