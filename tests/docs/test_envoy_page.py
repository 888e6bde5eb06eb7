"""``docs/envoy.md`` says of its connections what the test of them says."""

from pathlib import Path

from tests.kernel.envoy_kinds import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "envoy.md").read_text(encoding="utf-8")


def test_the_table_of_connections_is_the_one_that_is_made() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("|")]
    shown = [row[:4] for row in rows if row[0] in KINDS]
    assert shown == [[name, str(k.times), k.verdict, f"`{k.reason}`"] for name, k in KINDS.items()]


def test_the_sums_are_those_of_the_table() -> None:
    total = sum(kind.times for kind in KINDS.values())
    reached = sum(kind.times for kind in KINDS.values() if kind.verdict == "intercepted")
    assert f"{total:,}\nconnections" in PAGE
    assert f"listeners: {reached:,} |" in PAGE
