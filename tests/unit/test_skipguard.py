"""The skip guard, run by a pytest within pytest."""

import pytest

from tests import skipguard

pytest_plugins = ["pytester"]

SKIPS = """
import pytest

@pytest.mark.parametrize("letter", ["a", "b"])
def test_skips(letter):
    if letter == "b":
        pytest.skip("no b here")

@pytest.mark.xfail(reason="known")
def test_fails_as_expected():
    assert False
"""
MODULE_SKIPS = "import pytest; pytest.skip('no such kernel', allow_module_level=True)"
NOTHING_SKIPS = "def test_passes(): pass"


@pytest.fixture(autouse=True)
def _no_other_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis alone takes a second to load, in each inner run."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.mark.parametrize(
    ("source", "allowed", "outcome"),
    [
        pytest.param(NOTHING_SKIPS, None, pytest.ExitCode.OK, id="no skip and no list passes"),
        pytest.param(SKIPS, None, pytest.ExitCode.TESTS_FAILED, id="a skip without a list fails"),
        pytest.param(SKIPS, "# only a comment\n\n", pytest.ExitCode.TESTS_FAILED, id="a skip with an empty list fails"),
        pytest.param(SKIPS, "test_it.py::test_skips[b]: no b", pytest.ExitCode.OK, id="a listed skip passes"),
        pytest.param(SKIPS, "test_it.py::test_sk*: no b", pytest.ExitCode.OK, id="a star stands for anything"),
        pytest.param(SKIPS, "test_it.py::test_skips[a]: no b", pytest.ExitCode.TESTS_FAILED, id="another id fails"),
        pytest.param(SKIPS, "test_it.py::test_skips[ab]: x", pytest.ExitCode.TESTS_FAILED, id="brackets are no set"),
        pytest.param(SKIPS, "test_skips[b]: no b", pytest.ExitCode.TESTS_FAILED, id="a part of an id fails"),
        pytest.param(MODULE_SKIPS, None, pytest.ExitCode.TESTS_FAILED, id="a module that skips as a whole fails"),
        pytest.param(SKIPS, "test_it.py::test_skips[b]", pytest.ExitCode.USAGE_ERROR, id="no reason is refused"),
    ],
)
def test_a_run_ends_as_its_skips_deserve(
    pytester: pytest.Pytester, source: str, allowed: str | None, outcome: pytest.ExitCode
) -> None:
    pytester.makepyfile(test_it=source)
    if allowed is not None:
        pytester.mkdir("tests")
        (pytester.path / skipguard.ALLOWED).write_text(allowed)
    assert pytester.runpytest_inprocess("-p", "tests.skipguard").ret == outcome


def test_an_unreviewed_skip_is_named_with_its_reason(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=SKIPS)
    result = pytester.runpytest_inprocess("-p", "tests.skipguard")
    result.stdout.fnmatch_lines(["*skips that nobody reviewed*", "test_it.py::test_skips[[]b[]]: *no b here"])


def test_a_failure_keeps_its_own_exit_code(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=SKIPS + "\ndef test_stops(): pytest.exit('enough', returncode=42)")
    assert pytester.runpytest_inprocess("-p", "tests.skipguard").ret == 42
