"""Fail the run on any skip that nobody reviewed.  `make` loads it; by hand: ``pytest -p tests.skipguard``.

A test that skips quietly protects nothing.  The skips that were argued stand in ``tests/allowed_skips.txt``,
one a line: a node id, in which ``*`` stands for anything (and brackets for themselves), a colon, and the reason.

    tests/kernel/test_legacy.py::test_*[nft-*]: needs nf_tables, which some kernels lack

Refuses a line without a reason.  Expected failures (xfail) are not skips.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ALLOWED = Path("tests") / "allowed_skips.txt"


@dataclass(frozen=True)
class AllowedSkip:
    """One reviewed skip: the node ids that it covers, and why they may be skipped."""

    pattern: str
    reason: str

    def covers(self, nodeid: str) -> bool:
        """Tell whether *nodeid* is covered; only ``*`` is special, because fnmatch would read ``[…]`` as a set."""
        return re.fullmatch(".*".join(map(re.escape, self.pattern.split("*"))), nodeid) is not None


def parse_allowed(text: str) -> tuple[AllowedSkip, ...]:
    """Read the list; blank lines and lines that begin with ``#`` are not entries.  Raise ValueError for any other.

    >>> parse_allowed("tests/test_a.py::test_b: no IPv6 on this machine")
    (AllowedSkip(pattern='tests/test_a.py::test_b', reason='no IPv6 on this machine'),)
    """
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        pattern, _, reason = line.partition(": ")
        if not pattern.strip() or not reason.strip():
            message = f"{ALLOWED}:{number}: expected 'node id: reason', found {line!r}"
            raise ValueError(message)
        entries.append(AllowedSkip(pattern.strip(), reason.strip()))
    return tuple(entries)


class SkipGuard:
    """Collects the skips that the list does not cover, and fails a run that had any."""

    def __init__(self, allowed: tuple[AllowedSkip, ...]) -> None:
        self.allowed = allowed
        self.unreviewed: list[str] = []

    def judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        """Remember *report*'s test if it was skipped and nobody reviewed that."""
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        if not any(entry.covers(report.nodeid) for entry in self.allowed):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.unreviewed.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """See each phase of each test."""
        self.judge(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """See modules that skip as a whole; pytest collects no test from them."""
        self.judge(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Turn a run that passed, or found nothing else to run, into a failure."""
        if self.unreviewed and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name each unreviewed skip, and the way out."""
        if not self.unreviewed:
            return
        terminalreporter.section("skips that nobody reviewed", red=True)
        for line in self.unreviewed:
            terminalreporter.line(line)
        terminalreporter.line(f"Make them run, or add them to {ALLOWED} with a reason.")


def pytest_configure(config: pytest.Config) -> None:
    """Put the guard on watch with the list of the checkout that is tested; no list allows nothing."""
    path = config.rootpath / ALLOWED
    try:
        allowed = parse_allowed(path.read_text("utf-8") if path.exists() else "")
    except ValueError as error:
        raise pytest.UsageError(*error.args) from error
    config.pluginmanager.register(SkipGuard(allowed), "nodeagent-skipguard")
