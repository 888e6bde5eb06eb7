"""The commands that need no privilege, and how the command line speaks."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nodeagent.cli import main
from nodeagent.cli.arguments import parse_destination

Run = Callable[..., tuple[int, str, str]]

POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  annotations: {annotations}
status:
  podIPs: [{{ip: 10.244.1.5}}]
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command on a Pod with these annotations; return exit code, standard output, standard error."""

    def run_command(annotations: dict[str, str], command: str, *arguments: str) -> tuple[int, str, str]:
        manifest = tmp_path / "pod.yaml"
        manifest.write_text(POD.format(annotations=json.dumps(annotations)), encoding="utf-8")
        code = main([command, "-f", str(manifest), *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def read_json(run: Run, annotations: dict[str, str], *command: str) -> Any:  # noqa: ANN401  # it is JSON
    _, out, _ = run(annotations, *command, "-o", "json")
    return json.loads(out)


EXCLUDING = {"nodeagent.io/excludeOutboundIPRanges": "10.1.2.3/8, 192.0.2.7"}


def test_policy_says_what_was_understood_and_from_where(run: Run) -> None:
    policy = read_json(run, EXCLUDING, "policy")
    assert policy["exclude_ranges"] == ["10.0.0.0/8", "192.0.2.7/32"]
    assert policy["include_ranges"] == ["*"]
    assert policy["sources"]["exclude_ranges"] == "annotation nodeagent.io/excludeOutboundIPRanges"
    assert policy["mode"] == "enforce"
    assert policy["rejected"] == []
    assert "10.0.0.0/8" in policy["warnings"][0]


def test_a_refused_value_exits_2_and_is_named(run: Run) -> None:
    code, out, err = run({"nodeagent.io/excludeOutboundPorts": "22,99999"}, "policy", "-o", "json")
    (rejected,) = json.loads(out)["rejected"]
    assert code == 2
    assert {"key", "reason", "entry", "message"} <= set(rejected)
    assert (rejected["key"], rejected["reason"], rejected["entry"]) == (
        "nodeagent.io/excludeOutboundPorts",
        "syntax",
        "99999",
    )
    assert err == ""


@pytest.mark.parametrize("command", [("render",), ("explain", "--to", "203.0.113.10:443")], ids=lambda c: c[0])
def test_nothing_follows_from_a_refused_value(command: tuple[str, ...], run: Run) -> None:
    code, out, err = run({"nodeagent.io/excludeOutboundPorts": "22,99999"}, *command)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "99999" in err


def test_a_misspelt_key_is_said_and_sets_nothing(run: Run) -> None:
    code, out, err = run({"nodeagent.io/excludeOutboundIPRange": "10.0.0.0/8"}, "policy")
    assert code == 0
    assert "excludeOutboundIPRanges" in err
    assert "10.0.0.0/8" not in out


def test_explain_names_verdict_rule_and_annotation(run: Run) -> None:
    explained = read_json(run, EXCLUDING, "explain", "--to", "10.9.9.9:443")
    assert {k: explained[k] for k in ("verdict", "port", "reason", "rule", "matched", "source")} == {
        "verdict": "bypassed",
        "port": None,
        "reason": "excluded_cidr",
        "rule": "4: destination range excluded",
        "matched": "10.0.0.0/8",
        "source": "annotation nodeagent.io/excludeOutboundIPRanges",
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--to", "203.0.113.10:443"), ("intercepted", 15001, "included")),
        (("--to", "[2001:db8::10]:443"), ("intercepted", 15001, "included")),
        (("--to", "203.0.113.10:443/udp"), ("bypassed", None, "non_tcp")),
        (("--to", "203.0.113.10:443", "--uid", "1337"), ("bypassed", None, "exempt_owner")),
        (("--to", "203.0.113.10:443", "--gid", "1337"), ("bypassed", None, "exempt_owner")),
        (("--to", "127.0.0.1:8080"), ("bypassed", None, "loopback")),
        (("--to", "10.244.1.5:8080"), ("bypassed", None, "loopback")),
        (("--to", "10.244.1.5:8080", "--interface", "eth0"), ("intercepted", 15001, "included")),
        (("--to", "[::ffff:203.0.113.10]:443"), ("intercepted", 15001, "included")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) and value[0].startswith("--") else None,
)
def test_explain_follows_the_connection(arguments: tuple[str, ...], expected: tuple[Any, ...], run: Run) -> None:
    explained = read_json(run, {}, "explain", *arguments)
    assert (explained["verdict"], explained["port"], explained["reason"]) == expected


@pytest.mark.parametrize(
    "text",
    ["", "203.0.113.10", "203.0.113.10:", "203.0.113.10:65536", "203.0.113.10:4٤3", "2001:db8::1:443",
     "[203.0.113.10]:443", "[2001:db8::1]", "example.com:443", "203.0.113.10:443/icmp", "203.0.113.10:443/other",
     "203.0.113.10:-1", "[fe80::1%lo]:80"],
)  # fmt: skip
def test_what_is_no_destination_is_refused(text: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run({}, "explain", "--to", text)
    assert exit_.value.code == 2
    assert "IP:PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["", "abcdefghijklmnop", "\u00e9" * 8, "eth 0", "eth/0", "eth0:1", "eth0\n", "eth\x1b0", ".", "..", "eth\udcff"],
    ids=["nothing", "16 letters", "16 bytes", "a blank", "a slash", "an alias", "a line end", "an escape sequence",
         "a dot", "two dots", "no text"],
)  # fmt: skip
def test_what_is_no_device_is_refused(name: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run({}, "explain", "--to", "203.0.113.10:443", f"--interface={name}")
    assert exit_.value.code == 2
    assert "not a device" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["e", "abcdefghijklmno", "eth0.100", "-", "veth@x"])
def test_what_linux_takes_for_a_device_is_one(name: str, run: Run) -> None:
    assert run({}, "explain", "--to", "203.0.113.10:443", f"--interface={name}")[0] == 0


def test_a_destination_may_name_its_protocol() -> None:
    assert parse_destination("203.0.113.10:443/tcp") == parse_destination("203.0.113.10:443")


def test_render_shows_each_backend_and_family(run: Run) -> None:
    _, nft, _ = run(EXCLUDING, "render")
    _, legacy, _ = run(EXCLUDING, "render", "--backend", "legacy", "--family", "4")
    _, six, _ = run(EXCLUDING, "render", "--backend", "legacy", "--family", "6")
    assert "ip daddr 10.0.0.0/8 return" in nft
    assert "-d 10.0.0.0/8" in legacy
    assert "ip6tables" not in legacy
    assert "10.0.0.0/8" not in six
    assert "--to-ports 15001" in six


def test_nothing_is_rendered_for_a_pod_that_is_only_observed(run: Run) -> None:
    code, out, _ = run({"nodeagent.io/intercept": "observe"}, "render")
    assert code == 0
    assert "mode observe: nothing is programmed" in out


def test_explain_does_not_promise_what_an_observed_pod_does_not_get(run: Run) -> None:
    explained = read_json(run, {"nodeagent.io/intercept": "observe"}, "explain", "--to", "203.0.113.10:443")
    assert (explained["verdict"], explained["port"], explained["reason"]) == ("bypassed", None, "observed")
    assert explained["source"] == "annotation nodeagent.io/intercept"
    assert explained["would"]["port"] == 15001


def test_a_configurations_warnings_are_said(run: Run, tmp_path: Path) -> None:
    configuration = tmp_path / "config.yaml"
    configuration.write_text("defaults: {excludeOutboundIPRanges: 10.1.2.3/8}\n")
    assert "10.0.0.0/8" in read_json(run, {}, "policy", "--config", str(configuration))["warnings"][0]
    assert "10.0.0.0/8" in run({}, "render", "--config", str(configuration))[2]


def test_what_is_no_path_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run({}, "apply", "--netns", "\udcff")
    assert exit_.value.code == 2
    assert "not a path" in capsys.readouterr().err


def test_several_documents_give_several_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "pods.yaml"
    manifest.write_text("---\n".join(POD.format(annotations="{}").replace("web", name) for name in ("one", "two")))
    assert main(["policy", "-f", str(manifest), "-o", "json"]) == 0
    assert [item["pod"] for item in json.loads(capsys.readouterr().out)] == ["shop/one", "shop/two"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no Pod"),
        ("{kind: Deployment, metadata: {name: x}}", "Deployment"),
        ("{kind: Pod, metadata: {name: x, annotations: {nodeagent.io/proxyPort: 15001}}}", "string"),
        ("a: [", "pod.yaml"),
        ("[" * 100_000, "pod.yaml"),
        ("kind: Pod\x00", "pod.yaml"),
    ],
    ids=["empty", "not a Pod", "annotation not a string", "not YAML", "deep", "control byte"],
)
def test_bad_input_is_one_clear_line(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "pod.yaml"
    manifest.write_text(text)
    assert main(["policy", "-f", str(manifest)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert says in captured.err


def test_a_bad_configuration_names_its_path_and_line(run: Run, tmp_path: Path) -> None:
    configuration = tmp_path / "config.yaml"
    configuration.write_text("mode: enforce\nproxy:\n  port: many\n")
    code, out, err = run({}, "policy", "--config", str(configuration))
    assert (code, out) == (2, "")
    assert "proxy.port" in err
    assert f"{configuration}:3" in err


def test_a_configuration_is_heard(run: Run, tmp_path: Path) -> None:
    configuration = tmp_path / "config.yaml"
    configuration.write_text("proxy: {port: 4140}\ndefaults: {excludeOutboundIPRanges: 192.0.2.0/24}\n")
    policy = read_json(run, EXCLUDING, "policy", "--config", str(configuration))
    assert policy["proxy_port"] == 4140
    assert policy["exclude_ranges"] == ["10.0.0.0/8", "192.0.2.0/24", "192.0.2.7/32"]
    explained = read_json(run, {}, "explain", "--config", str(configuration), "--to", "192.0.2.1:80")
    assert explained["source"] == "configuration defaults.excludeOutboundIPRanges"


def test_hostile_text_reaches_the_terminal_escaped(run: Run) -> None:
    code, out, err = run({"nodeagent.io/excludeOutboundIPRanges": "10.0.0.0/8\x1b[2J\nnodeagent_up 0"}, "policy")
    assert code == 2
    assert "\x1b" not in out + err
    assert "nodeagent_up 0" not in (out + err).splitlines()


OUTCOME = {"id", "backend", "mode", "changes", "applied", "remaining", "removed", "intercepted"}


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ((), "ip daddr 192.0.2.7 return"),
        (
            ("--backend", "legacy"),
            '-A NODEAGENT_OUTPUT -d 192.0.2.7/32 -m comment --comment "nodeagent:excluded_cidr" -j RETURN',
        ),
    ],
    ids=["nft", "legacy"],
)
def test_a_dry_run_needs_no_privilege_and_shows_the_rules(arguments: tuple[str, ...], rule: str, run: Run) -> None:
    code, out, _ = run(EXCLUDING, "apply", "--netns", "/nowhere", "--dry-run", "-o", "json", *arguments)
    plan = json.loads(out)
    assert (code, plan.keys()) == (0, OUTCOME)
    assert (plan["mode"], plan["applied"], plan["removed"], plan["remaining"]) == ("enforce", False, False, [])
    assert {change["kind"] for change in plan["changes"]} == {"missing"}
    assert rule in [change["rule"] for change in plan["changes"]]
    assert f": {rule}\n" in run(EXCLUDING, "apply", "--netns", "/nowhere", "--dry-run", *arguments)[1]


@pytest.mark.parametrize("mode", ["observe", "disabled"])
def test_a_dry_run_of_a_mode_that_programs_nothing_claims_nothing(mode: str, run: Run) -> None:
    command = ("apply", "--netns", "/nowhere", "--dry-run")
    plan = read_json(run, {"nodeagent.io/intercept": mode}, *command)
    assert plan == {
        "id": None,
        "backend": "nft",
        "mode": mode,
        "changes": [],
        "applied": False,
        "remaining": [],
        "removed": False,
        "intercepted": None,
    }
    code, out, err = run({"nodeagent.io/intercept": mode}, *command)
    assert (code, err) == (0, "")
    assert out == f"mode {mode}: nothing would be programmed, and rules of ours, if any, would be removed\n"


@pytest.mark.parametrize(
    ("terminal", "no_color", "coloured"), [(True, "", True), (False, "", False), (True, "1", False)]
)
def test_colours_are_for_terminals(terminal: bool, no_color: str, coloured: bool, tmp_path: Path) -> None:  # noqa: FBT001
    manifest = tmp_path / "pod.yaml"
    manifest.write_text(POD.format(annotations="{}"))
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | (
        {"NO_COLOR": no_color} if no_color else {}
    )
    command = [sys.executable, "-m", "nodeagent", "policy", "-f", str(manifest)]
    try:
        out = theirs if terminal else subprocess.PIPE
        done = subprocess.run(command, stdout=out, env=environment, check=True)
        text = os.read(ours, 65536) if terminal else done.stdout
    finally:
        os.close(ours)
        os.close(theirs)
    assert (b"\x1b[" in text) is coloured


# -- standard streams that are closed, full, or read by nobody

MANY = ", ".join(f"10.{n // 256}.{n % 256}.0/24" for n in range(0, 4000, 2))
LONGER_THAN_A_PIPE = 65536
BUFFERING = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])


def start(manifest: Path, *command: str, unbuffered: str = "", **streams: Any) -> tuple[int, str]:  # noqa: ANN401
    """Run a command on its own; return its exit code, and its standard error where that is a pipe."""
    full = [sys.executable, "-m", "nodeagent", *command]
    if command[0] in {"policy", "render", "apply"}:
        full += ["-f", str(manifest)]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(full, check=False, text=True, env=environment, **{"stderr": subprocess.PIPE} | streams)
    return done.returncode, done.stderr


def shell(manifest: Path, command: str) -> tuple[int, str, str]:
    """Run what a shell makes of *command*; return exit code, standard output, standard error."""
    line = command.format(nodeagent=f"{sys.executable} -m nodeagent", pod=manifest)
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=False, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Return a manifest whose plan is longer than what a pipe holds."""
    path = tmp_path / "good.yaml"
    path.write_text(POD.format(annotations=json.dumps({"nodeagent.io/excludeOutboundIPRanges": MANY})))
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """Return a manifest with a value that is refused."""
    path = tmp_path / "bad.yaml"
    path.write_text(POD.format(annotations='{nodeagent.io/proxyPort: "0"}'))
    return path


@BUFFERING
@pytest.mark.parametrize(
    ("manifest", "command", "code"),
    [
        pytest.param("good", ("policy", "-o", "json"), 0, id="all at once"),
        pytest.param("good", ("apply", "--dry-run", "--netns", "/nowhere"), 0, id="line by line"),
        pytest.param("good", ("--version",), 0, id="one line"),
        pytest.param("good", ("policy", "--help"), 0, id="help"),
        pytest.param("bad", ("policy",), 2, id="a refused value"),
    ],
)
def test_a_reader_that_went_away_changes_no_exit_code(
    manifest: str, command: tuple[str, ...], code: int, unbuffered: str, request: pytest.FixtureRequest
) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as nobody:
        found, err = start(request.getfixturevalue(manifest), *command, unbuffered=unbuffered, stdout=nobody)
    assert found == code
    assert all(line.startswith(("error: ", "warning: ")) for line in err.splitlines())
    assert bool(err) == bool(code)


def test_a_reader_may_go_away_in_the_middle(good: Path) -> None:
    command = "{nodeagent} apply --dry-run --netns /nowhere -f {pod}"
    code, whole, _ = shell(good, command)
    assert code == 0
    assert len(whole) > LONGER_THAN_A_PIPE
    assert shell(good, f"{command} | head -n 1; exit ${{{{PIPESTATUS[0]}}}}") == (
        0,
        whole.splitlines(keepends=True)[0],
        "",
    )


@BUFFERING
@pytest.mark.parametrize("command", [("render",), ("policy", "-o", "json"), ("--help",)], ids=lambda c: c[0])
def test_a_full_disk_does_not_look_like_a_difference(command: tuple[str, ...], unbuffered: str, good: Path) -> None:
    with Path("/dev/full").open("w") as full:
        code, err = start(good, *command, unbuffered=unbuffered, stdout=full)
    assert (code, err) == (3, "error: done, but the output cannot be written: No space left on device\n")


_TABLE = """
import sys
from nodeagent.cli import guard
from nodeagent.cli.flows import print_flows
names = "namespace pod container destination address port protocol verdict reason".split()
sums = "connections packets bytes payload received_bytes".split()
flow = dict.fromkeys(names, "x") | dict.fromkeys(sums, 1)
sys.exit(guard(lambda: print_flows([flow] * 9000, sys.argv[1]) or 0))
"""


@BUFFERING
@pytest.mark.parametrize("output", ["table", "json", "csv"])
def test_flows_say_the_same_of_a_full_disk_and_of_a_reader_that_went_away(output: str, unbuffered: str) -> None:
    command, environment = [sys.executable, "-c", _TABLE, output], os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, check=False, text=True, env=environment, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 3
    assert done.stderr == "error: done, but the output cannot be written: No space left on device\n"
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as nobody:
        done = subprocess.run(command, check=False, text=True, env=environment, stdout=nobody, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("wait", "--timeout", "nan"), "not a time: 'nan'; give seconds, 0 to 86400"),
        (("wait", "--timeout", "-1"), "not a time: '-1'; give seconds, 0 to 86400"),
        (("wait", "--timeout", "inf"), "not a time: 'inf'; give seconds, 0 to 86400"),
        (("programmer", "--socket", "/s", "--agent-uid", "-1"), "not a uid or gid: '-1'; give a number"),
        (("run", "--programmer-uid", "4294967295"), "not a uid or gid: '4294967295'; give a number"),
        (("render", "-f", "-", "--backend", "iptables"), "not a backend: 'iptables'; give one of auto, nft, legacy"),
    ],
    ids=lambda words: " ".join(words[-2:]) if isinstance(words, tuple) else "",
)
def test_a_number_or_a_word_that_cannot_be_is_refused(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_one_long_value_makes_no_other_row_as_long(run: Run) -> None:
    many = ",".join(f"10.{number // 256}.{number % 256}.0/24" for number in range(1500))
    code, out, _ = run({"nodeagent.io/excludeOutboundIPRanges": many}, "policy")
    assert code == 0
    assert sum(len(line) > 400 for line in out.splitlines()) == 1


@BUFFERING
@pytest.mark.parametrize("command", [("policy",), ("bogus",)], ids=["a refused value", "usage"])
def test_an_error_that_nobody_can_be_told_keeps_its_exit_code(
    command: tuple[str, ...], unbuffered: str, bad: Path
) -> None:
    with Path("/dev/full").open("w") as full, Path("/dev/null").open("w") as null:
        assert start(bad, *command, unbuffered=unbuffered, stdout=null, stderr=full)[0] == 2


@pytest.mark.parametrize(
    ("command", "code", "out", "err"),
    [
        pytest.param("policy -f {pod} <&-", 0, "shop/web", "", id="input that is not needed"),
        pytest.param("policy -f - <&-", 2, "", "error: standard input: holds no Pod", id="input that is needed"),
        pytest.param("policy -f {pod} >&-", 0, "", "", id="output"),
        pytest.param("policy -f /nonexistent >&-", 2, "", "error: /nonexistent: ", id="output, and an error"),
        pytest.param("policy -f {pod} 2>&-", 0, "shop/web", "", id="errors, and there are none"),
        pytest.param("policy -f /nonexistent 2>&-", 2, "", "", id="errors, and there is one"),
        pytest.param("bogus 2>&-", 2, "", "", id="errors, and the usage is wrong"),
        pytest.param("--log-level debug --log-format json policy -f {pod} 2>&-", 0, "shop/web", "", id="logs"),
        pytest.param("apply --dry-run --netns /nowhere -f {pod} <&- >&- 2>&-", 0, "", "", id="all three"),
    ],
)
def test_closed_streams_change_no_exit_code(command: str, code: int, out: str, err: str, good: Path) -> None:
    found, printed, said = shell(good, "{nodeagent} " + command)
    assert found == code
    assert (printed.split("\n")[0], said[: len(err) or None]) == (out, err)


@pytest.mark.parametrize("command", ["policy", "render", "explain", "apply", "diff", "clear", "doctor"])
def test_every_command_helps(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert f"nodeagent {command}" in capsys.readouterr().out.split("example:")[1]
