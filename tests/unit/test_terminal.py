"""The lab's terminal draws what ncurses sends, scrolling by several lines included."""

import pytest

from tests.lab.terminal import Terminal

LINES = "1\\n2\\n3\\n4\\n5"
MARGINS = "\\033[2;4r\\033[1;1H"


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        ("\\033[S", ["1", "3", "4", "", "5"]),
        ("\\033[2S", ["1", "4", "", "", "5"]),
        ("\\033[2T", ["1", "", "", "2", "5"]),
    ],
    ids=["up by one", "up by two", "down by two"],
)
def test_lines_between_the_margins_scroll(sequence: str, expected: list[str]) -> None:
    with Terminal(["printf", f"{LINES}{MARGINS}{sequence}x"], lines=5, columns=20) as terminal:
        assert terminal.ends() == 0
        assert terminal.text().splitlines() == ["x", *expected[1:]]
