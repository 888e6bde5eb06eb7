"""What is installed has the page: the wheel's build builds it, from sources alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from nodeagent.web.assets import TYPES, load

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHECKOUT = Path(__file__).parents[2]
WHEEL = ("wheel", "--quiet", "--disable-pip-version-check", "--no-build-isolation", "--no-deps")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Copy what git knows, or would: no node_modules, nothing that was built."""
    copy = tmp_path / "sources"
    copy.mkdir()
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={CHECKOUT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, map(os.fsdecode, listed.split(b"\0"))):
        if (CHECKOUT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, copy / name)
    assert not (copy / "nodeagent/web/static").exists()
    return copy


def test_a_wheel_that_is_built_from_sources_contains_the_page(sources: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", *WHEEL, "--wheel-dir", tmp_path, sources], check=True, timeout=250)
    [wheel] = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "unpacked")
    assert not [name for name in names if "node_modules" in name or name.endswith(".ts")]
    page = load(tmp_path / "unpacked/nodeagent/web/static")
    assert set(page) == set(TYPES)
    assert b"d3-sankey" in page["licenses.txt"].body
    for name in ("page.js", "page.css", "index.html"):
        assert b"https://" not in page[name].body.replace(b"https://d3js.org", b"")
