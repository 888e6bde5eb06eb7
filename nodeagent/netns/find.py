"""Every network namespace of a node that has a process or a name: for clearing up."""

from collections.abc import Iterator
from pathlib import Path


def find_namespaces(proc: Path = Path("/proc")) -> list[str]:
    """Return one path for each network namespace that a process below *proc* lives in, or that is mounted.

    The one that the caller is in is left out.  What ends meanwhile is left out, too.
    """
    own = _identity(proc / "self/ns/net") or _identity(Path("/proc/self/ns/net"))
    found: dict[tuple[int, int], str] = {}
    for path in (*_of_processes(proc), *_mounted(proc)):
        identity = _identity(path)
        if identity and identity != own:
            found.setdefault(identity, str(path))
    return list(found.values())


def _of_processes(proc: Path) -> Iterator[Path]:
    for entry in proc.iterdir():
        if entry.name.isdigit():
            yield entry / "ns/net"


def _mounted(proc: Path) -> Iterator[Path]:
    mounts = proc / "self/mounts" if (proc / "self/mounts").exists() else None
    if mounts is None:
        return
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if fields[2] == "nsfs":
            yield Path(fields[1])


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
