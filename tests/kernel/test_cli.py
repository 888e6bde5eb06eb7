"""The commands that touch a kernel, as their users run them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nodeagent.programmer.seam import Choice
from tests.lab import Backend, Dial, Netns, Topology, istio_like, legacy_save, nft_save
from tests.lab.seccomp import NETFILTER, RAW_INET, RAW_INET6

pytestmark = pytest.mark.kernel

POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: web
  annotations: {%s}
%s"""
EXCLUDING = 'nodeagent.io/excludeOutboundIPRanges: "198.51.100.0/24, 2001:db8:5::/48"'
NODEAGENT = (sys.executable, "-m", "nodeagent")


class Cli:
    """The command line on one manifest and one namespace."""

    def __init__(self, folder: Path, netns: str) -> None:
        self.manifest, self.netns = folder / "pod.yaml", netns
        self.write()

    def write(self, annotations: str = EXCLUDING, more: str = "") -> None:
        """Edit the manifest."""
        self.manifest.write_text(POD % (annotations, more), encoding="utf-8")

    def run(self, command: str, *arguments: str, before: tuple[str, ...] = ()) -> tuple[int, str, str]:
        """Return exit code, standard output, standard error."""
        full = [*before, *NODEAGENT, command, "-f", str(self.manifest), "--netns", self.netns, *arguments]
        done = subprocess.run(full, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    def json(self, command: str, *arguments: str) -> Any:  # noqa: ANN401  # it is JSON
        """Return what a command prints as JSON."""
        return json.loads(self.run(command, *arguments, "-o", "json")[1])


@pytest.fixture
def cli(tmp_path: Path, pod: Netns) -> Cli:
    """Return the command line for a bare namespace."""
    return Cli(tmp_path, pod.path)


def refused(cli: Cli, pod: Netns, code: int, says: str, *arguments: str, before: tuple[str, ...] = ()) -> None:
    """Hold an apply to one clear line, its exit code, and no change."""
    untouched = legacy_save(pod), nft_save(pod)
    done, out, err = cli.run("apply", *arguments, before=before)
    assert (done, out) == (code, ""), err
    assert len(err.splitlines()) == 1, err
    assert says in err
    assert (legacy_save(pod), nft_save(pod)) == untouched


def test_apply_diff_clear_tell_their_story(cli: Cli, backend: Choice) -> None:
    chosen = ("--backend", backend.value)
    assert cli.run("diff", *chosen)[0] == 1
    assert cli.run("apply", *chosen)[0] == 0
    assert cli.json("diff", *chosen) | {"id": ""} == {
        "id": "",
        "backend": backend.value,
        "changes": [],
        "found": cli.json("diff", *chosen)["id"],
        "in_sync": True,
    }
    again = cli.json("apply", *chosen)
    assert (again["changes"], again["applied"], again["remaining"]) == ([], False, [])
    cli.write('nodeagent.io/excludeOutboundPorts: "22"')
    code, out, _ = cli.run("diff", *chosen)
    assert code == 1
    assert "22" in out
    assert cli.json("clear") == {"removed": True, "intercepted": 0}
    assert cli.run("diff", *chosen)[0] == 1


def test_a_dry_run_shows_what_an_apply_then_does(cli: Cli, backend: Choice) -> None:
    chosen = ("--backend", backend.value)
    planned, done = cli.json("apply", "--dry-run", *chosen), cli.json("apply", *chosen)
    assert not planned["applied"]
    assert planned | {"applied": True} == done


@pytest.mark.exhaustive
def test_mode_observe_takes_our_rules_away(cli: Cli, pod: Netns) -> None:
    written = cli.json("apply", "--backend", "nft")
    cli.write('nodeagent.io/intercept: "observe"')
    assert cli.run("diff")[0] == 1
    code, out, err = cli.run("apply", "-o", "json")
    assert (code, nft_save(pod)) == (0, {})
    assert "mode" in err
    assert json.loads(out) == {
        "id": None,
        "backend": "nft",
        "mode": "observe",
        "changes": [change | {"kind": "extra"} for change in written["changes"]],
        "applied": True,
        "remaining": [],
        "removed": True,
        "intercepted": 0,
    }
    assert cli.run("diff")[0] == 0
    assert "cleared" in cli.run("apply")[1]
    assert not cli.json("apply")["applied"]


@pytest.mark.exhaustive
def test_mode_observe_says_what_has_to_stay(tmp_path: Path, lab: Topology, backend: Choice) -> None:
    cli = Cli(tmp_path, lab.pod.path)
    assert cli.run("apply", "--backend", backend.value)[0] == 0
    cli.write('nodeagent.io/intercept: "disabled"')
    with lab.client.open_connection(Dial("203.0.113.10", 443)) as through:
        code, out, _ = cli.run("apply", "--drain-timeout", "0", "-o", "json")
        outcome = json.loads(out)
        assert (code, outcome["mode"], outcome["backend"]) == (1, "disabled", backend.value)
        assert (outcome["applied"], outcome["removed"], outcome["intercepted"]) == (True, False, 1)
        assert outcome["remaining"]
        assert len(outcome["remaining"]) < len(outcome["changes"])
        again = cli.json("apply", "--drain-timeout", "0")
        assert (again["applied"], again["changes"]) == (False, outcome["remaining"])
        assert through.echo() == "sidecar"
        assert cli.json("apply", "--now")["removed"]


@pytest.mark.exhaustive
def test_a_stranger_ahead_of_us_is_what_remains(cli: Cli, pod: Netns) -> None:
    pod.nft(
        "table ip first { chain c { type nat hook output priority -150; tcp dport 443 dnat to 203.0.113.99:443; }; }"
    )
    code, out, _ = cli.run("apply", "--backend", "nft", "-o", "json")
    written, again = json.loads(out), cli.json("apply", "--backend", "nft")
    assert (code, written["applied"], again["applied"]) == (1, True, False)
    assert [change["kind"] for change in written["remaining"]] == ["ahead"]
    assert again["changes"] == again["remaining"] == written["remaining"]
    assert written.keys() == again.keys() == cli.json("apply", "--dry-run").keys()


@pytest.mark.exhaustive
def test_clear_waits_says_what_is_open_and_can_be_told_not_to_wait(
    tmp_path: Path, lab: Topology, backend: Choice
) -> None:
    cli = Cli(tmp_path, lab.pod.path)
    assert cli.run("apply", "--backend", backend.value)[0] == 0
    with lab.client.open_connection(Dial("203.0.113.10", 443)) as through:
        code, _, err = cli.run("clear", "--drain-timeout", "0.3")
        assert code == 1
        assert "1 intercepted" in err
        assert through.echo() == "sidecar"
        assert cli.run("clear", "--now")[0] == 0
    assert cli.run("clear")[0] == 0


@pytest.mark.exhaustive
def test_a_misspelt_key_is_refused_before_anything_changes(cli: Cli, pod: Netns) -> None:
    cli.write('nodeagent.io/excludeOutboundIPRange: "10.0.0.0/8"')
    refused(cli, pod, 2, "nodeagent.io/excludeOutboundIPRange")


@pytest.mark.exhaustive
def test_a_bad_value_is_refused_before_anything_changes(cli: Cli, pod: Netns) -> None:
    cli.write('nodeagent.io/excludeOutboundIPRanges: "10.0.0.0/8,any"')
    refused(cli, pod, 2, "any")


@pytest.mark.exhaustive
def test_a_pod_of_the_hosts_network_is_refused(cli: Cli, pod: Netns) -> None:
    cli.write(more="spec: {hostNetwork: true}\n")
    refused(cli, pod, 4, "host's network")


@pytest.mark.exhaustive
def test_a_namespace_that_is_not_the_pods_is_refused(cli: Cli, pod: Netns) -> None:
    cli.write(more="status: {podIP: 10.244.9.9}\n")
    refused(cli, pod, 4, "10.244.9.9")


def as_the_host(pod: Netns) -> tuple[str, ...]:
    """Return what to put before a command so that *pod* is its own and PID 1's namespace: to it, the host's."""
    # The shell is PID 1, and stays: a process of its own may be named as well.
    return (*pod.enter, "--", "unshare", "--pid", "--fork", "--mount-proc", "--", "sh", "-c", '"$@"; exit $?', "sh")


@pytest.mark.exhaustive
@pytest.mark.parametrize(("netns", "code", "says"), [
    ("/nonexistent", 2, "cannot open"),
    ("/etc/passwd", 2, "not a network namespace"),
    ("999999999", 2, "PID 999999999"),
    ("1", 4, "host's network namespace"),
    ("/proc/1/ns/net", 4, "host's network namespace"),
    ("/proc/./1/ns/net", 4, "host's network namespace"),
    ("/proc/self/ns/mnt", 2, "not a network namespace"),
    ("/proc/self/ns/net", 4, "host's network namespace"),
    ("/proc/thread-self/ns/net", 4, "host's network namespace"),
    ("0", 2, "PID 0"),
])  # fmt: skip
def test_a_bad_namespace_is_one_clear_line(cli: Cli, pod: Netns, netns: str, code: int, says: str) -> None:
    """Whatever the bad name leads to, the namespace that nodeagent stands in is not programmed in its stead."""
    cli.netns = netns
    refused(cli, pod, code, says, before=as_the_host(pod))


@pytest.mark.exhaustive
def test_two_pods_for_one_namespace_are_refused(cli: Cli, pod: Netns) -> None:
    text = cli.manifest.read_text()
    cli.manifest.write_text(f"{text}---\n{text}")
    refused(cli, pod, 2, "2 Pods")


def test_without_privilege_nothing_is_tried(cli: Cli, pod: Netns) -> None:
    cli.manifest.parent.chmod(0o755)
    without = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    refused(cli, pod, 3, "run as root", before=without)


@pytest.mark.parametrize("kind", ["legacy", "nft"])
def test_another_tools_redirect_is_refused(kind: Backend, cli: Cli, pod: Netns) -> None:
    istio_like(pod, kind)
    refused(cli, pod, 4, "ISTIO_OUTPUT")
    assert cli.run("diff")[0] == 4


def lacking(*sockets: str) -> tuple[str, ...]:
    """Return what to put before a command so that its kernel lacks these."""
    return (sys.executable, "-m", "tests.lab.seccomp", ",".join(sockets))


def test_a_kernel_without_nf_tables_is_named(cli: Cli, pod: Netns) -> None:
    refused(cli, pod, 3, "nft", "--backend", "nft", before=lacking(NETFILTER))


def test_a_kernel_without_legacy_tables_is_named(cli: Cli, pod: Netns) -> None:
    refused(cli, pod, 3, "legacy", "--backend", "legacy", before=lacking(RAW_INET, RAW_INET6))


@pytest.mark.parametrize("chosen", [(), ("--backend", "legacy"), ("--backend", "nft")], ids=["auto", "legacy", "nft"])
def test_where_neither_backend_can_be_both_reasons_are_told(chosen: tuple[str, ...], cli: Cli) -> None:
    with Netns(user_namespace=True) as pod:
        cli.netns = pod.path
        says = ("backend legacy is not available here", "backend nft is not available here")
        for line in says if not chosen else [line for line in says if chosen[1] in line]:
            refused(cli, pod, 3, line, *chosen, before=lacking(NETFILTER))


def test_without_nf_tables_the_legacy_tables_are_used(cli: Cli, pod: Netns) -> None:
    code, out, err = cli.run("apply", before=lacking(NETFILTER))
    assert code == 0, err
    assert "backend legacy" in out
    assert "NODEAGENT_OUTPUT" in legacy_save(pod)["iptables nat"]


@pytest.mark.exhaustive
def test_nothing_is_imported_from_where_the_user_stands(cli: Cli, backend: Choice, tmp_path: Path) -> None:
    for name in ("structlog", "iptc", "pyroute2", "msgspec"):
        (tmp_path / f"{name}.py").write_text("open('poisoned', 'w').close()\n", encoding="ascii")
    nodeagent = str(Path(sys.executable).with_name("nodeagent"))  # the console script: python -m would look here itself
    command = [nodeagent, "apply", "-f", str(cli.manifest), "--netns", cli.netns, "--backend", backend.value]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert not (tmp_path / "poisoned").exists()


@pytest.mark.exhaustive
def test_closed_streams_do_not_come_between_nodeagent_and_its_children(cli: Cli, backend: Choice) -> None:
    closed = ("bash", "-c", '"$@" <&- >&- 2>&-; exit $?', "bash")
    codes = [cli.run(command, "--backend", backend.value, before=closed) for command in ("diff", "apply", "diff")]
    assert codes == [(1, "", ""), (0, "", ""), (0, "", "")]


@pytest.mark.exhaustive
def test_doctor_says_what_is_missing_without_privilege() -> None:
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *NODEAGENT, "doctor", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 3
    assert not findings["capabilities"]["ok"]


def test_doctor_finds_what_is_there() -> None:
    done = subprocess.run([*NODEAGENT, "doctor", "-o", "json"], capture_output=True, text=True, check=False)
    findings = {finding["what"]: finding["ok"] for finding in json.loads(done.stdout)}
    assert done.returncode == 0
    assert findings["backend nft"]
    assert findings["backend legacy"]


def test_doctor_finds_what_is_missing() -> None:
    command = [*lacking(NETFILTER, RAW_INET, RAW_INET6), *NODEAGENT, "doctor", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 3
    assert not findings["backend nft"]["ok"]
    assert findings["backend legacy"]["fatal"]


@pytest.mark.exhaustive
def test_logs_are_structured_and_quiet_by_default(cli: Cli) -> None:
    assert cli.run("apply")[2] == ""
    command = [sys.executable, "-m", "nodeagent", "--log-level", "info", "--log-format", "json"]
    done = subprocess.run(
        [*command, "diff", "-f", str(cli.manifest), "--netns", cli.netns], capture_output=True, text=True, check=False
    )
    event = json.loads(done.stderr.splitlines()[-1])
    assert (event["event"], event["verb"], event["netns"]) == ("done", "observe", cli.netns)
