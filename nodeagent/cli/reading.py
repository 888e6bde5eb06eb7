"""``policy``, ``render`` and ``explain``: what a Pod's annotations mean.  No privilege."""

import argparse
from dataclasses import dataclass
from typing import Any

from nodeagent.cli.client import ask
from nodeagent.cli.output import paint, print_error, print_json, print_table, print_warning, say
from nodeagent.compile import compile_policy
from nodeagent.compile.listing import print_rules
from nodeagent.decide import decide
from nodeagent.decide import describe as describe_decision
from nodeagent.errors import InputError
from nodeagent.files.configuration import load_configuration
from nodeagent.files.manifest import PodManifest, load
from nodeagent.model import BackendName, Connection, Decision, Family, Mode, Reason, Verdict
from nodeagent.policy import Configuration, Resolution, describe, resolve


@dataclass(frozen=True, slots=True)
class Subject:
    """A Pod from a manifest, and what its annotations were understood to mean."""

    pod: PodManifest
    resolution: Resolution

    @property
    def name(self) -> str:
        """Namespace and name, printable."""
        return f"{self.pod.namespace}/{self.pod.name}"


def read_subjects(arguments: argparse.Namespace) -> tuple[list[Subject], Configuration]:
    """Return what ``-f`` and ``--config`` name.

    Raises:
        InputError: one of them cannot be read or understood.
    """
    configuration = load_configuration(arguments.config)
    pods = load(arguments.filename)
    return [Subject(pod, resolve(pod.annotations, configuration)) for pod in pods], configuration


def read_accepted(arguments: argparse.Namespace) -> tuple[list[Subject], Configuration]:
    """Return the subjects if nothing was refused.

    Raises:
        InputError: an annotation was refused; the message names the first.
    """
    subjects, configuration = read_subjects(arguments)
    for subject in subjects:
        if subject.resolution.rejected:
            raise InputError(_refusals(subject))
    return subjects, configuration


def say_warnings(subjects: list[Subject], configuration: Configuration) -> None:
    """Print what deserves attention."""
    for warning in configuration.warnings:
        print_warning(f"configuration: {warning}")
    for subject in subjects:
        for warning in subject.resolution.warnings:
            print_warning(f"{subject.name}: {warning}")


def _refusals(subject: Subject) -> str:
    first, *others = subject.resolution.rejected
    more = f" (and {len(others)} more; see nodeagent policy)" if others else ""
    return f"{subject.name}: {first.message}{more}"


# -- policy -------------------------------------------------------------------------------------


def run_policy(arguments: argparse.Namespace) -> int:
    """Print what was understood; 2 if anything was refused."""
    subjects, configuration = read_subjects(arguments)
    if arguments.output == "json":
        described: list[dict[str, Any]] = [{"pod": s.name, **describe(s.resolution)} for s in subjects]
        for item in described:
            item["warnings"] = [*configuration.warnings, *item["warnings"]]
        print_json(described[0] if len(described) == 1 else described)
    else:
        say_warnings([], configuration)
        for subject in subjects:
            _print_policy(subject)
    return 2 if any(subject.resolution.rejected for subject in subjects) else 0


def _print_policy(subject: Subject) -> None:
    resolution = subject.resolution
    sources = resolution.policy.sources
    described = describe(resolution)
    say(paint(subject.name, "bold"))
    print_table(
        [(name, _show(described[name]), source) for name, source in sources.items()],
        ("field", "value", "from"),
    )
    for warning in resolution.warnings:
        print_warning(warning)
    for rejection in resolution.rejected:
        print_error(rejection.message)
    if resolution.rejected:
        print_error("the Pod's annotations count as absent: the configuration alone holds")


def _show(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


# -- render -------------------------------------------------------------------------------------


def run_render(arguments: argparse.Namespace) -> int:
    """Print the literal rules."""
    subjects, configuration = read_accepted(arguments)
    say_warnings(subjects, configuration)
    backend = backend_to_render(arguments.backend or configuration.backend)
    rendered = [_render(subject, backend, arguments.family) for subject in subjects]
    if arguments.output == "json":
        print_json(rendered[0] if len(rendered) == 1 else rendered)
        return 0
    for item in rendered:
        say(paint(f"# {item['pod']}, {item['backend']}, rule set {item['id']}", "dim"))
        say("\n".join(item["rules"]) or f"# mode {item['mode']}: nothing is programmed")
    return 0


def backend_to_render(choice: str) -> BackendName:
    """Return the backend to show: ``auto`` is decided per namespace, and is nft by default."""
    return BackendName.LEGACY if choice == BackendName.LEGACY else BackendName.NFT


def _render(subject: Subject, backend: BackendName, family: Family | None) -> dict[str, Any]:
    policy = subject.resolution.policy
    ruleset = compile_policy(policy) if policy.mode is Mode.ENFORCE else None
    return {
        "pod": subject.name,
        "mode": policy.mode.value,
        "backend": backend.value,
        "id": ruleset.id if ruleset else None,
        "rules": list(print_rules(ruleset, backend, family)) if ruleset else [],
    }


# -- explain ------------------------------------------------------------------------------------


def run_explain(arguments: argparse.Namespace) -> int:
    """Print what happens to one connection, and the rule and annotation behind it."""
    if (arguments.pod is None) == (arguments.filename is None):
        raise InputError("give a manifest (-f), or a pod of this node's agent (--pod NAMESPACE/NAME)")
    if arguments.pod is not None:
        return _explain_live(arguments)
    subjects, configuration = read_accepted(arguments)
    say_warnings(subjects, configuration)
    explained = [_explain(subject, arguments) for subject in subjects]
    if arguments.output == "json":
        print_json(explained[0] if len(explained) == 1 else explained)
        return 0
    for item in explained:
        style = "good" if item["verdict"] == Verdict.INTERCEPTED else "warning"
        print_table([(name, value) for name, value in item.items() if value is not None and name != "would"])
        say(paint(_sentence(item), style))
    return 0


def _explain_live(arguments: argparse.Namespace) -> int:
    """Print what the agent says of one of its pods, and what it has seen of such connections."""
    to, protocol = arguments.to, f"/{arguments.to.protocol.value}"
    host = f"[{to.address}]" if to.address.version == Family.V6 else str(to.address)
    asked = {"pod": arguments.pod, "to": f"{host}:{to.port}{protocol}"}
    asked |= {name: str(v) for name in ("uid", "gid", "interface") if (v := getattr(arguments, name)) is not None}
    item = ask(arguments.api, "/api/v1/explain", asked)
    if arguments.output == "json":
        print_json(item)
        return 0
    shown = {name: value for name, value in item.items() if value is not None and name not in ("would", "observed")}
    print_table(list(shown.items()))
    say(paint(_sentence(item), "good" if item["verdict"] == Verdict.INTERCEPTED else "warning"))
    seen = [
        f"{f['verdict']} ({f['reason']}): {f['connections']} connections, {f['bytes']} bytes" for f in item["observed"]
    ]
    say(f"seen so far: {'; '.join(seen) or 'nothing'}")
    return 0


def _explain(subject: Subject, arguments: argparse.Namespace) -> dict[str, object]:
    policy, to = subject.resolution.policy, arguments.to
    own = to.address.is_loopback or to.address in subject.pod.pod_ips
    connection = Connection(
        to.address,
        to.port,
        to.protocol,
        arguments.uid,
        arguments.gid,
        arguments.interface or ("lo" if own else "eth0"),
    )
    decision = decide(policy, connection)
    head = {"pod": subject.name, "mode": policy.mode.value}
    if policy.mode is Mode.ENFORCE:
        return {**head, **describe_decision(decision)}
    source = policy.sources.get("mode", "default")
    unmanaged = Decision(Verdict.BYPASSED, Reason.OBSERVED, "the Pod's mode: nothing is programmed", source)
    return {**head, **describe_decision(unmanaged), "would": describe_decision(decision)}


def _sentence(item: dict[str, object]) -> str:
    if item["mode"] != Mode.ENFORCE:
        return f"The Pod's mode is {item['mode']}: nothing is programmed, it bypasses the sidecar."
    if item["verdict"] == Verdict.INTERCEPTED:
        return f"It goes to the sidecar's port {item['port']}."
    return "It bypasses the sidecar."
