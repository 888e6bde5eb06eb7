"""Compile ``bpf/*.c`` with BCC, in a child: LLVM takes 140 MB that a process never gives back.

The child needs no privilege: programs name their maps by number, and the loader puts descriptors in
their place.  What it makes may be kept: it depends on the sources, on BCC and on the processor only.
"""

import base64
import ctypes
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from nodeagent.errors import KernelError, printable

SOURCES: Final = Path(__file__).parents[2] / "bpf"
FILES: Final = ("egress.c", "ingress.c", "sockets.c", "upkeep.c", "guard.c")
_HEADERS: Final = Path(sys.prefix) / "share" / "nodeagent" / "headers"
_SHOWN: Final = 2000  # characters of the compiler's complaint


def compile_programs(
    sources: Path = SOURCES, cache: Path | None = None, files: Sequence[str] = FILES
) -> Mapping[str, bytes]:
    """Return the instructions of each program in *files*, by its name; maps are still numbers.

    *cache* is a directory for what was compiled before; one that cannot be used is passed over.

    Raises:
        KernelError: BCC, its headers or the sources are missing, or they do not compile.
    """
    kept = cache / f"{_fingerprint(sources, files)}.json" if cache else None
    if kept and (programs := _load(kept)):
        return programs
    text = _run_child(sources, files)
    if kept:
        _save(kept, text)
    return _decode(text)


def _run_child(sources: Path, files: Sequence[str]) -> bytes:
    environment = {**os.environ, "BCC_KERNEL_SOURCE": os.environ.get("BCC_KERNEL_SOURCE", str(_HEADERS))}
    command = [sys.executable, "-P", "-m", __name__, str(sources.resolve()), *files]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL, env=environment)
    if done.returncode:
        complaint = done.stderr.decode("utf-8", "replace").strip()[-_SHOWN:]
        where = f"with the headers in {environment['BCC_KERNEL_SOURCE']} ('make setup' or BCC_KERNEL_SOURCE gives them)"
        raise KernelError(f"cannot compile {sources} {where}: {printable(complaint, _SHOWN)}")
    return done.stdout


def _fingerprint(sources: Path, files: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{platform.machine()} {_bcc_version()} {' '.join(files)}".encode())
    try:
        for path in sorted(sources.glob("*.[ch]")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    except OSError as error:
        raise KernelError(f"cannot read the programs' sources in {sources}: {error.strerror}") from None
    return digest.hexdigest()[:32]


def _bcc_version() -> str:
    try:
        return version("bcc")
    except PackageNotFoundError:
        return "unknown"


def _load(path: Path) -> Mapping[str, bytes] | None:
    try:
        return _decode(path.read_bytes())
    except (OSError, ValueError):
        return None


def _save(path: Path, text: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)
    except OSError:
        return  # the next start compiles again


def _decode(text: bytes) -> Mapping[str, bytes]:
    return {name: base64.b64decode(code) for name, code in json.loads(text).items()}


# -- the child ----------------------------------------------------------------------------------


def main() -> None:
    """Compile the files named on the command line; print the programs as JSON."""
    directory, *files = sys.argv[1:]
    programs: dict[str, str] = {}
    for file in files:
        programs |= _compiled(Path(directory), file)
    sys.stdout.write(json.dumps(programs))


def _compiled(directory: Path, file: str) -> dict[str, str]:
    from bcc import BPF  # noqa: PLC0415  # in the child only
    from bcc.libbcc import lib  # noqa: PLC0415

    unit = BPF(text=(directory / file).read_text("utf-8"), cflags=[f"-I{directory}"])
    programs = {}
    for number in range(lib.bpf_num_functions(unit.module)):
        name = lib.bpf_function_name(unit.module, number)
        start, size = lib.bpf_function_start(unit.module, name), lib.bpf_function_size(unit.module, name)
        programs[name.decode()] = base64.b64encode(ctypes.string_at(start, size)).decode()
    return programs


if __name__ == "__main__":
    main()
