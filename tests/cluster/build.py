"""Build what a node runs: Go programs from the pinned module in `tools/`, and Kubernetes' own pause in C; and Helm.

Helm has a module of its own, `tools/helm/`: it wants newer versions of the same libraries than Kubernetes does.

The result is a directory of programs outside the checkout, ``$XDG_CACHE_HOME/nodeagent/cluster/KEY`` or below
``~/.cache``, where KEY is a hash of the module's versions and checksums and of its programs.  It appears complete or
not at all, and is built once per KEY, at the lowest priority and one package at a time.  Go verifies each download
against the module's `go.sum`.  Refuses to build with a Go that cannot fetch the version which the module wants.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).parent / "tools"
"""The module of the node's programs."""
HELM = TOOLS / "helm"
"""Helm's."""
NICE = ("nice", "-n", "19")
OLDEST_GO = (1, 21)  # the first that fetches the Go which go.mod asks for, from the module proxy, with a checksum
PROGRESS_EVERY = 15.0
_K8S, _CONTAINERD, _CNI = "k8s.io/kubernetes", "github.com/containerd/containerd/v2", "github.com/containernetworking"


class BuildError(Exception):
    """The programs could not be built: mend what the message names, and run it again."""


@dataclass(frozen=True, slots=True)
class Program:
    """One Go program: its package, what its module's own build sets, and where its version goes."""

    package: str
    module: str
    version_in: str = ""
    tags: str = "urfave_cli_no_docs no_btrfs"
    cgo: bool = False

    @property
    def name(self) -> str:
        """The file's name."""
        return "etcd" if self.package.startswith("go.etcd.io") else Path(self.package).name


def _kubernetes(name: str) -> Program:
    return Program(f"{_K8S}/cmd/{name}", _K8S, "k8s.io/component-base/version.gitVersion")


def _containerd(name: str) -> Program:
    return Program(f"{_CONTAINERD}/cmd/{name}", _CONTAINERD, f"{_CONTAINERD}/version.Version")


def _cni(path: str) -> Program:
    return Program(f"{_CNI}/plugins/plugins/{path}", f"{_CNI}/plugins")


PROGRAMS = (
    Program("go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3"),
    *map(_kubernetes, ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")),
    *map(_containerd, ("containerd", "containerd-shim-runc-v2", "ctr")),
    # C: the first thing a container's process does, and libseccomp.
    Program("github.com/opencontainers/runc", "github.com/opencontainers/runc", tags="seccomp", cgo=True),
    *map(_cni, ("main/bridge", "main/loopback", "ipam/host-local")),
)
_HELM = "helm.sh/helm/v4"
HELM_PROGRAMS = (Program(f"{_HELM}/cmd/helm", _HELM, f"{_HELM}/internal/version.version", tags=""),)


def cache_directory() -> Path:
    """Return the directory that keeps programs between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nodeagent" / "cluster"


def programs_directory() -> Path:
    """Return the directory with all of a node's programs; build them first if they are not there."""
    return _built(TOOLS, PROGRAMS, "the cluster's programs: about ten minutes of one core, once", _pause)


def helm() -> Path:
    """Return Helm; build it first if it is not there."""
    return _built(HELM, HELM_PROGRAMS, "Helm: about three minutes of one core, once") / "helm"


def _built(tools: Path, programs: tuple[Program, ...], what: str, also: Callable[[Path], None] | None = None) -> Path:
    """Return the directory with *programs* of the module *tools*, and with what *also* puts there."""
    built = cache_directory() / _key(tools, programs)
    built.parent.mkdir(parents=True, exist_ok=True)
    with (built.parent / f".lock-{tools.name}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once: one builds, the other finds it done
        if not built.is_dir():
            _require_tools()
            _say(f"building {what}")
            with tempfile.TemporaryDirectory(dir=built.parent, prefix=".building-") as name:
                work = Path(name, "programs")
                work.mkdir()
                if also:
                    also(work)
                for number, program in enumerate(programs, start=1):
                    with _progress(f"{program.name} ({number} of {len(programs)})") as report:
                        _build(program, tools, work / program.name, report)
                work.rename(built)
    return built


def _key(tools: Path, programs: tuple[Program, ...]) -> str:
    versions = b"".join((tools / name).read_bytes() for name in ("go.mod", "go.sum"))
    return hashlib.sha256(versions + repr((programs, platform.machine())).encode()).hexdigest()[:16]


def _require_tools() -> None:
    missing = [tool for tool in ("go", "gcc", "pkg-config") if not shutil.which(tool)]
    if missing:
        raise BuildError(
            f"cannot build the cluster without {', '.join(missing)}; CONTRIBUTING.md says where Go comes from"
        )
    found = re.search(r"go(\d+)\.(\d+)", _output("go", "version", GOTOOLCHAIN="local"))
    if found is None or tuple(map(int, found.groups())) < OLDEST_GO:
        raise BuildError(f"needs Go {'.'.join(map(str, OLDEST_GO))} or newer, which fetches the one that it wants")


def _build(program: Program, tools: Path, destination: Path, report: "Progress") -> None:
    flags = "-s -w"
    if program.version_in:
        version = _output("go", "list", "-m", "-f", "{{.Version}}", program.module, tools=tools).strip()
        flags += f" -X {program.version_in}={version}"
    command = ["go", "build", "-v", "-p", "1", "-trimpath", "-buildvcs=false", "-tags", program.tags]
    command += ["-ldflags", flags, "-o", str(destination), program.package]
    environment = _environment(CGO_ENABLED=str(int(program.cgo)))
    with subprocess.Popen([*NICE, *command], cwd=tools, env=environment, stderr=subprocess.PIPE, text=True) as compiler:
        assert compiler.stderr is not None
        said = [report.package(line.strip()) for line in compiler.stderr]
    if compiler.returncode:
        raise BuildError(f"building {program.package} failed:\n" + "\n".join(said[-20:]))


def _pause(folder: Path) -> None:
    """Compile the process that holds a pod's namespaces, from Kubernetes' own source, into *folder*."""
    _output("go", "mod", "download", _K8S)
    source = Path(_output("go", "list", "-m", "-f", "{{.Dir}}", _K8S).strip(), "build", "pause", "linux", "pause.c")
    _output("gcc", "-Os", "-static", "-s", "-DVERSION=local", "-o", str(folder / "pause"), str(source))


def _output(*command: str, tools: Path = TOOLS, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=tools, env=_environment(**environment), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return done.stdout


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "GOWORK": "off", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "auto", **more}


class Progress:
    """Says now and then how far one program is."""

    def __init__(self, what: str) -> None:
        self._what, self._count = what, 0
        self._began = self._said = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since this program's build began."""
        return time.monotonic() - self._began

    def package(self, line: str) -> str:
        """Take note of a *line* of `go build -v`, a package that is compiled now; return it."""
        self._count += 1
        if time.monotonic() - self._said > PROGRESS_EVERY:
            self._said = time.monotonic()
            _say(f"{self._what}: {self._count} packages in {self.elapsed:.0f} s, now {line}")
        return line


@contextmanager
def _progress(what: str) -> Iterator[Progress]:
    progress = Progress(what)
    yield progress
    _say(f"{what}: built in {progress.elapsed:.0f} s")


def _say(message: str) -> None:
    print(f"[cluster] {message}", file=sys.stderr, flush=True)
