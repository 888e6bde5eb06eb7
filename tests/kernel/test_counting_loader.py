"""Loading: what the verifier has to do, what is missing and is told, and what a load must not disturb."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.bpf import programs
from nodeagent.bpf.compiler import SOURCES, compile_programs
from nodeagent.bpf.counting import Counting, Settings, detach
from nodeagent.bpf.generations import Folder
from nodeagent.bpf.loader import cgroup2_mount
from nodeagent.bpf.probe import probe
from nodeagent.bpf.programs import GUARD, HOOKS, UPKEEP
from nodeagent.errors import BusyError, KernelError
from tests.kernel.conftest import counted_pod
from tests.kernel.counting_lab import CountedTopology, bypassed
from tests.lab import Cgroup, Dial, PodCgroups, TestCgroup, Topology

pytestmark = pytest.mark.kernel

MOST_INSTRUCTIONS = 20_000
SINK = "203.0.113.10"


@pytest.fixture
def settings(counting_settings: Settings) -> Iterator[Settings]:
    """Nothing is loaded before the test, nor after it."""
    detach(counting_settings.bpffs)
    yield counting_settings
    detach(counting_settings.bpffs)


def changed(settings: Settings, directory: Path, file: str, old: str, new: str) -> Settings:
    """Return settings whose sources differ."""
    shutil.copytree(SOURCES, directory / "bpf")
    text = (directory / "bpf" / file).read_text()
    assert old in text
    (directory / "bpf" / file).write_text(text.replace(old, new))
    return replace(settings, sources=directory / "bpf")


def in_a_process(code: str, *wrapper: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    command = [*wrapper, sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def loading(settings: Settings) -> str:
    """Return code that loads, and prints what went wrong."""
    return (
        "from pathlib import Path, PosixPath\n"
        "from nodeagent.bpf.counting import Counting, Settings\n"
        "from nodeagent.errors import KernelError\n"
        f"try: Counting.load({settings!r})\n"
        "except KernelError as error: print(error)\n"
    )


@pytest.mark.parametrize("name", [*HOOKS, *UPKEEP, GUARD])
def test_the_verifier_has_little_to_do(
    name: str, module_counting: Counting, counting_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    code = compile_programs(cache=counting_settings.cache)[name]
    number = programs.verified_instructions(name, code, module_counting._loaded.maps)
    with capsys.disabled():
        print(f" {name}: {number} ", end="")
    assert number < MOST_INSTRUCTIONS


def test_everything_is_attached_and_nothing_refused(module_counting: Counting) -> None:
    health = module_counting.health()
    assert (health.attached, health.refused) == (tuple(sorted(HOOKS)), {})


def test_no_bpf_file_system(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"no BPF file system is mounted: mount one \('mount -t bpf bpf "):
        Counting.load(replace(settings, bpffs=tmp_path))


def test_a_cgroup_of_the_wrong_hierarchy(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="is not in the cgroup v2 hierarchy"):
        Counting.load(replace(settings, cgroup=tmp_path))


def test_a_cgroup_that_is_not_there(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"cannot open the cgroup .*No such file"):
        Counting.load(replace(settings, cgroup=tmp_path / "gone"))


def test_no_cgroup_v2_at_all(settings: Settings) -> None:
    everywhere = replace(settings, cgroup=None)
    unmount = f'umount -l {cgroup2_mount()} && exec "$@"'
    done = in_a_process(loading(everywhere), "unshare", "--mount", "sh", "-c", unmount, "sh")
    assert "which is mounted nowhere" in done.stdout, done.stderr


def test_a_missing_capability_is_named(settings: Settings) -> None:
    with Counting.load(settings):  # compiled, and loaded
        pass
    done = in_a_process(loading(settings), "setpriv", "--bounding-set", "-bpf,-sys_admin,-net_admin,-perfmon")
    assert "CAP_BPF" in done.stdout, done.stderr


def test_a_refused_program_is_named_and_the_old_ones_go_on(
    settings: Settings, tmp_path: Path, node_cgroup: Cgroup
) -> None:
    cgroups = PodCgroups(node_cgroup, "refused")
    bad = changed(settings, tmp_path, "egress.c", "\tif (!sk)\n\t\treturn PASS;\n\tstate =", "\tstate =")
    with (
        Counting.load(settings) as counting,
        Topology(cgroups=cgroups) as lab,
        CountedTopology(lab, cgroups, counting, counted_pod(cgroups)) as pod,
        pod.expect(bypassed(SINK, 443)),
    ):
        with pytest.raises(KernelError, match=r"the kernel refuses the program 'egress': .*sock_common_or_null"):
            Counting.load(bad)
        assert counting.health().attached == tuple(sorted(HOOKS))
        lab.client.open_connection(Dial(SINK, 443)).abort()


def test_a_refused_program_that_is_not_essential_is_told(settings: Settings, tmp_path: Path) -> None:
    bad = changed(settings, tmp_path, "sockets.c", "PASSIVE_ESTABLISHED_CB || !sk)", "PASSIVE_ESTABLISHED_CB)")
    with Counting.load(bad) as counting:
        health = counting.health()
    assert set(health.refused) == {"sockops"}
    assert "the kernel refuses the program 'sockops'" in health.refused["sockops"]
    assert health.attached == tuple(sorted({*HOOKS} - {"sockops"}))


def test_sources_that_do_not_compile(settings: Settings, tmp_path: Path) -> None:
    bad = changed(settings, tmp_path, "egress.c", "#define PASS 1", "#define PASS oops")
    with pytest.raises(KernelError, match="oops"):
        Counting.load(bad)


def test_two_loaders_at_once(settings: Settings) -> None:
    with Counting.load(settings):
        lock = os.open(Folder(settings.bpffs).path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(BusyError, match="another process"):
                Counting.load(settings)
        finally:
            os.close(lock)


def test_bcc_is_in_the_child_only(settings: Settings) -> None:
    code = loading(settings) + "import sys; print([name for name in sys.modules if name.startswith('bcc')])"
    done = in_a_process(code)
    assert done.stdout == "[]\n", done.stderr


def test_it_compiles_where_the_machine_has_no_kernel_headers(tmp_path: Path) -> None:
    hide = 'for d in /lib/modules /usr/src; do [ ! -d $d ] || mount -t tmpfs none $d; done; exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", hide, "sh", sys.executable, "-m", "nodeagent.bpf.compiler"]
    headers = os.environ.get("BCC_KERNEL_SOURCE") or str(Path(sys.prefix) / "share" / "nodeagent" / "headers")
    done = subprocess.run(
        [*command, str(SOURCES), "egress.c"],
        env={**os.environ, "BCC_KERNEL_SOURCE": headers},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert list(json.loads(done.stdout)) == ["egress"], done.stderr


def test_a_cgroup_that_went_away_is_replaced(settings: Settings) -> None:
    with TestCgroup() as first:
        Counting.load(replace(settings, cgroup=first.path)).close()
    with Counting.load(settings) as counting:
        assert counting.health().attached == tuple(sorted(HOOKS))


def test_detaching_leaves_nothing_and_may_be_repeated(settings: Settings, node_cgroup: Cgroup) -> None:
    cgroups = PodCgroups(node_cgroup, "detached")
    with (
        Topology(cgroups=cgroups) as lab,
        Counting.load(settings) as counting,
        CountedTopology(lab, cgroups, counting, counted_pod(cgroups)) as pod,
    ):
        detach(settings.bpffs)
        detach(settings.bpffs)
        assert counting.health().attached == ()
        with pod.expect():
            lab.client.open_connection(Dial(SINK, 443)).abort()
    assert not Folder(settings.bpffs).path.exists()


def test_the_probe_finds_what_works_and_leaves_nothing(settings: Settings) -> None:
    findings = {finding.name: finding for finding in probe(settings)}
    assert all(finding.works for finding in findings.values() if finding.essential), findings
    assert {f"program {name}" for name in (*HOOKS, *UPKEEP, GUARD)} <= set(findings)
    assert not Folder(settings.bpffs).path.exists()


def test_the_probe_says_what_a_refused_program_costs(settings: Settings, tmp_path: Path) -> None:
    bad = changed(settings, tmp_path, "sockets.c", "PASSIVE_ESTABLISHED_CB || !sk)", "PASSIVE_ESTABLISHED_CB)")
    (finding,) = (found for found in probe(bad) if not found.works and found.name != "netns cookie")
    assert (finding.name, finding.essential) == ("program sockops", False)
    assert finding.detail.startswith("unknown: inbound connections whose listener has closed; ")
