"""Load the counting programs, as this version of the project or as another one would: what upgrades are tested with.

    python -m tests.kernel.load_driver VERSION CGROUP DIRECTORY

VERSION is `this`, `program` (other instructions, same layout) or `layout` (a counter more in each slot).  What differs
is written into copies of the sources, so that the rest is the product itself.  DIRECTORY/VERSION has those of the C
sources (`write_sources`), or the whole of the product (`write_package`), DIRECTORY what was compiled.
"""

import compileall
import shutil
import sys
from pathlib import Path
from types import ModuleType

from tests.lab.mounts import BPFFS

_ROOT = Path(__file__).parents[2]
_FLOW_H = {
    "#define LAYOUT 1\n": "#define LAYOUT 2\n",
    "	__u64 received_bytes;": "	__u64 spare;\n	__u64 received_bytes;",
}
_LAYOUT_PY = {
    "LAYOUT: Final = 1\n": "LAYOUT: Final = 2\n",
    '        ("received_bytes", c_uint64),\n': '        ("spare", c_uint64),\n        ("received_bytes", c_uint64),\n',
}
_SLOTS_PY = {'x7Q")': 'x6Q8xQ")'}
_EGRESS_C = {
    "	if (state && (state->direction": "	tally(TALLIES - 1 + !skb->len);\n	if (state && (state->direction"
}
_CHANGES: dict[str, dict[str, dict[str, str]]] = {
    "this": {},
    "program": {"bpf/egress.c": _EGRESS_C},
    "layout": {"bpf/flow.h": _FLOW_H, "nodeagent/bpf/layout.py": _LAYOUT_PY, "nodeagent/bpf/slots.py": _SLOTS_PY},
}


def replaced(text: str, changes: dict[str, str]) -> str:
    """Return *text* changed; each change must find its place."""
    for old, new in changes.items():
        if old not in text:
            message = f"nothing like {old!r} to change"
            raise LookupError(message)
        text = text.replace(old, new)
    return text


def write_sources(version: str, directory: Path) -> None:
    """Write the C sources of *version*."""
    (directory / version).mkdir()
    for path in (_ROOT / "bpf").glob("*.[ch]"):
        changes = _CHANGES[version].get(f"bpf/{path.name}", {})
        (directory / version / path.name).write_text(replaced(path.read_text(), changes))


def write_package(version: str, directory: Path) -> Path:
    """Write the product as *version* has it; return the folder, for PYTHONPATH."""
    folder = directory / version
    shutil.copytree(_ROOT / "nodeagent", folder / "nodeagent")
    shutil.copytree(_ROOT / "bpf", folder / "bpf")
    for name, changes in _CHANGES[version].items():
        path = folder / name
        path.write_text(replaced(path.read_text(), changes))
    compileall.compile_dir(folder, quiet=1)
    return folder


def other_layout() -> None:
    """Put the changed layout where the product will find its own."""
    name = "nodeagent.bpf.layout"
    path = _ROOT / "nodeagent" / "bpf" / "layout.py"
    module = sys.modules[name] = ModuleType(name)
    text = replaced(path.read_text(), _LAYOUT_PY)
    exec(compile(text, path, "exec"), module.__dict__)  # noqa: S102  # our own source


def main(version: str, cgroup: str, directory: str) -> None:
    """Load *version* and end; everything stays pinned."""
    if version == "layout":
        other_layout()
    from nodeagent.bpf.counting import Counting, Settings  # noqa: PLC0415  # after the layout was changed

    sources, cache = Path(directory, version), Path(directory)
    Counting.load(Settings(Path(BPFFS), Path(cgroup), cache=cache, sources=sources)).close()


if __name__ == "__main__":
    main(*sys.argv[1:])
