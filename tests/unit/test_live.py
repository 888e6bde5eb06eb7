"""What ``top`` shows and what keys do: no terminal is needed to say it."""

from typing import Any

import pytest

from nodeagent.cli.live import Chosen, Line, Ranked, Rates, page_of, press, screen, select

WIDE, NARROW = 140, 60


def flow(pod: str = "web", address: str = "203.0.113.10", verdict: str = "intercepted", **more: Any) -> dict[str, Any]:  # noqa: ANN401
    counted = {"connections": 1, "packets": 5, "bytes": 100, "payload": 10, "received_bytes": 50}
    about = {"namespace": "shop", "pod": pod, "container": "app", "destination": address, "address": address}
    reason = "included" if verdict == "intercepted" else "excluded_cidr"
    return {**about, "port": 443, "protocol": "tcp", "verdict": verdict, "reason": reason, **counted, **more}


FLOWS = [
    Ranked(flow("web", bytes=300), 1.0),
    Ranked(flow("cart", "198.51.100.7", "bypassed", bytes=200), 3.0),
    Ranked(flow("db", "192.0.2.1", "bypassed", reason="rules_missing", bytes=100), 2.0),
]


def after(keys: list[str], flows: int = 100) -> Chosen | None:
    chosen: Chosen | None = Chosen()
    for key in keys:
        assert chosen, "it has quit before"
        chosen = press(chosen, key, page_of(24), flows)
    return chosen


def pods(chosen: Chosen) -> list[str]:
    return [ranked.flow["pod"] for ranked in select(FLOWS, chosen)]


def text(lines: list[Line]) -> list[str]:
    return ["".join(piece for piece, _ in line).rstrip() for line in lines]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([], ["cart", "db", "web"]),
        (["r"], ["web", "db", "cart"]),
        (["s"], ["web", "cart", "db"]),
        (["s", "S"], ["cart", "db", "web"]),
        (["s"] * 6, ["cart", "db", "web"]),
        (["f"], ["db"]),
        (["f", "f"], ["cart", "db"]),
        (["f"] * 3, ["web"]),
        (["f"] * 4, []),
        ([*"/198.51"], ["cart"]),
        ([*"/CART"], ["cart"]),
        ([*"/shop/db", "\n"], ["db"]),
        ([*"/rules_missing"], ["db"]),
        ([*"/webx", "\x7f"], ["web"]),
        ([*"/web", "\x1b"], ["cart", "db", "web"]),
        ([*"/web", "\n", "\x1b"], ["cart", "db", "web"]),
        ([*"/q"], []),
        (["?", "s"], ["cart", "db", "web"]),
        (["x", "KEY_RESIZE", "KEY_F(1)"], ["cart", "db", "web"]),
    ],
)
def test_keys_choose_what_is_shown(keys: list[str], expected: list[str]) -> None:
    chosen = after(keys)
    assert chosen
    assert pods(chosen) == expected


@pytest.mark.parametrize(
    ("keys", "first"),
    [
        (["j", "j", "k"], 1),
        (["k"], 0),
        (["KEY_NPAGE"], 20),
        (["KEY_NPAGE"] * 9, 80),
        (["G"], 80),
        (["G", "g"], 0),
        (["G", "s"], 0),
    ],
)
def test_keys_go_up_and_down_and_never_too_far(keys: list[str], first: int) -> None:
    chosen = after(keys)
    assert chosen
    assert chosen.first == first


def test_q_quits_but_is_a_letter_while_one_types() -> None:
    assert after(["q"]) is None
    chosen = after(["/", "q"])
    assert chosen
    assert chosen.text == "q"


def test_a_rate_is_what_grew_since_the_last_look() -> None:
    rates = Rates()
    assert [r.rate for r in rates.rank([flow(bytes=100)], 10.0)] == [None]
    assert [r.rate for r in rates.rank([flow(bytes=300), flow("new", bytes=50)], 12.0)] == [100.0, 25.0]
    assert [r.rate for r in rates.rank([flow(bytes=10)], 13.0)] == [0.0]  # forgotten, and begun anew


def test_a_screen_is_as_high_as_the_terminal_and_shows_a_page_of_many_flows() -> None:
    many = [Ranked(flow(f"pod-{number}"), None) for number in range(10_000)]
    shown = text(screen(many, Chosen(first=500), "", 24, WIDE))
    assert len(shown) == 24
    assert len([line for line in shown if line.startswith("shop/pod-")]) == page_of(24)
    assert "501-520 of 10000" in shown[-1]


@pytest.mark.parametrize("height", range(1, 8))
def test_a_screen_fits_a_terminal_of_few_lines(height: int) -> None:
    assert len(screen(FLOWS, Chosen(), "no agent answers", height, 20)) == height


def test_a_narrow_screen_leaves_out_what_matters_least() -> None:
    wide, narrow = (text(screen(FLOWS, Chosen(), "", 24, width)) for width in (WIDE, NARROW))
    everything = "POD CONTAINER DESTINATION PORT PROTO VERDICT REASON CONNECTIONS BYTES RECEIVED RATEv"
    assert " ".join(wide[2].split()) == everything
    assert narrow[2].split() == ["POD", "DESTINATION", "VERDICT", "REASON", "RATEv"]
    assert max(map(len, narrow[2:6])) <= NARROW


def test_names_of_strangers_stay_on_their_line() -> None:
    evil = flow("a\n\x1b[2Jb", "x\ty", container="\u202eevil")
    shown = text(screen([Ranked(evil, 1.0)], Chosen(), "gone\x07", 24, WIDE))
    assert all(line.isprintable() and line.isascii() for line in shown)
    assert "shop/a\\n\\x1b[2Jb" in shown[3]


def test_the_first_line_says_what_leaked_and_that_it_stands_still() -> None:
    head = text(screen(FLOWS, Chosen(paused=True), "", 24, WIDE))[0]
    assert head == "3 flows, 300 B intercepted, 300 B bypassed, 1 leak   PAUSED"


def test_flows_of_several_nodes_say_which() -> None:
    shown = text(screen([Ranked(flow(node="node-a"), None)], Chosen(), "", 24, WIDE))
    assert shown[2].startswith("NODE    POD")
    assert shown[3].startswith("node-a  shop/web")
