"""Container images without a registry: OCI archives, one layer each, made from Debian packages of this machine.

The files are copied from where dpkg has installed them, together with what those packages depend on.  What a package's
maintainer scripts would do is not done, so this is for programs that are used, not for systems that are maintained.
"""

import hashlib
import io
import json
import os
import platform
import re
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

BASE_IMAGE = "localhost/base:local"
BASE_PACKAGES = ("busybox-static", "python3-minimal", "libpython3-stdlib")
"""A shell with tools, and Python with its whole standard library: a client or a server is a line of it."""

# Wanted by maintainer scripts or for people, and large.
_LEFT_OUT = frozenset({"dpkg", "debconf", "perl", "perl-base", "install-info", "media-types", "tzdata", "coreutils"})
_LEFT_OUT_PATHS = ("/usr/share/doc", "/usr/share/man", "/usr/share/locale", "/usr/share/lintian", "/etc")
_MERGED = ("bin", "sbin", "lib", "lib64")  # links to their namesakes below /usr
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_FILES = {
    "etc/passwd": "root:x:0:0::/:/bin/sh\nproxy:x:1337:1337::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    "etc/group": "root:x:0:\nproxy:x:1337:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


class ImageError(Exception):
    """The image cannot be made of what is installed here; the message says what is missing."""


def write_debian_image(archive: Path, reference: str, packages: Sequence[str] = BASE_PACKAGES) -> None:
    """Write an image named *reference* that holds *packages*, which must be installed, and what they depend on."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tree:
        _add_skeleton(tree)
        for path in sorted(_files_of(_closure(packages))):
            _add(tree, path)
        _add_busybox(tree)
    _write_archive(archive, reference, layer.getvalue(), {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin"]})


def write_program_image(archive: Path, reference: str, program: Path) -> None:
    """Write an image named *reference* that holds one static *program*, and runs it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tree:
        tree.add(program, program.name, filter=_as_root)
    _write_archive(archive, reference, layer.getvalue(), {"Entrypoint": [f"/{program.name}"], "User": "65534:65534"})


# ── what dpkg knows ───────────────────────────────────────────────────────────────────────────────────────────────────


def _closure(packages: Iterable[str]) -> list[str]:
    """Return *packages* and all that they depend on; of alternatives, the first that is installed."""
    depends = _installed()
    found: dict[str, None] = {}
    queue = list(packages)
    while queue:
        package = queue.pop()
        if package in found or package in _LEFT_OUT:
            continue
        if package not in depends:
            raise ImageError(f"the Debian package {package} is not installed: requirements/debian-cluster.txt has it")
        found[package] = None
        for alternatives in depends[package]:
            queue += [name for name in alternatives if name in depends][:1]
    return list(found)


def _installed() -> dict[str, list[list[str]]]:
    """Return what each installed package depends on: a list of alternatives for each dependency."""
    shape = "${binary:Package}\t${Pre-Depends}, ${Depends}\n"
    lines = _dpkg_query("--show", f"--showformat={shape}").splitlines()
    split = (line.split("\t") for line in lines)
    return {name.split(":")[0]: [*map(_names, depends.split(","))] for name, depends in split}


def _names(dependency: str) -> list[str]:
    """Return the packages of one dependency.

    >>> _names(" libssl3 (>= 3.0.0) | libssl1.1:any")
    ['libssl3', 'libssl1.1']
    """
    return [words[0].split(":")[0] for words in map(str.split, re.split(r"\|", dependency)) if words]


def _files_of(packages: Sequence[str]) -> set[str]:
    listed = set(filter(None, _dpkg_query("--listfiles", *packages).splitlines()))
    wanted = {path for path in listed if path.startswith("/") and not path.startswith(_LEFT_OUT_PATHS)}
    # Without its bytecode, which a maintainer script made, Python starts four times slower.
    for folder in {os.path.dirname(path) for path in wanted if path.endswith(".py")}:  # noqa: PTH120 - text
        wanted.update(map(str, Path(folder, "__pycache__").glob("*.pyc")))
    return wanted - {"/."} - {f"/{name}" for name in _MERGED}


def _dpkg_query(*arguments: str) -> str:
    done = subprocess.run(["dpkg-query", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"dpkg-query does not know what is installed: {done.stderr.strip()}")
    return done.stdout


# ── the layer ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _add_skeleton(tree: tarfile.TarFile) -> None:
    for name, mode in (("usr", 0o755), ("etc", 0o755), ("proc", 0o755), ("sys", 0o755), ("tmp", 0o1777)):
        folder = tarfile.TarInfo(name)
        folder.type, folder.mode = tarfile.DIRTYPE, mode
        tree.addfile(folder)
    for name in _MERGED:
        _add_link(tree, name, f"usr/{name}")
    for name, text in _FILES.items():
        file = tarfile.TarInfo(name)
        file.size = len(text)
        tree.addfile(file, io.BytesIO(text.encode()))


def _add(tree: tarfile.TarFile, path: str) -> None:
    # Debian 12's packages still say /bin and /lib; on the machine, and in the image, these are links into /usr.
    first = path.split("/")[1]
    name = f"usr{path}" if first in _MERGED else path[1:]
    if os.path.lexists(path):
        tree.add(path, name, recursive=False, filter=_as_root)


def _add_busybox(tree: tarfile.TarFile) -> None:
    there = {Path(name).name for name in tree.getnames() if name.startswith(("usr/bin/", "usr/sbin/"))}
    applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet not in there:
            _add_link(tree, f"usr/bin/{applet}", "busybox")


def _add_link(tree: tarfile.TarFile, name: str, target: str) -> None:
    link = tarfile.TarInfo(name)
    link.type, link.linkname = tarfile.SYMTYPE, target
    tree.addfile(link)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


# ── the archive: image-layout, image-spec 1.1 ─────────────────────────────────────────────────────────────────────────


def _write_archive(archive: Path, reference: str, layer: bytes, process: Mapping[str, object]) -> None:
    digest = _digest(layer)
    machine = _ARCHITECTURES.get(platform.machine(), platform.machine())
    config = _json(
        {
            "architecture": machine,
            "os": "linux",
            "config": process,
            "rootfs": {"type": "layers", "diff_ids": [digest]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
        }
    )
    entry = _descriptor("application/vnd.oci.image.manifest.v1+json", manifest)
    names = {"io.containerd.image.name": reference}
    index = _json({"schemaVersion": 2, "manifests": [{**entry, "annotations": names}]})
    blobs = {f"blobs/sha256/{_digest(blob)[7:]}": blob for blob in (layer, config, manifest)}
    with tarfile.open(archive, "w") as out:
        for name, data in {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": index, **blobs}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))


def _descriptor(media_type: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
