"""What the page is made of, without an agent: sums, the picture's bands, files, ages and the missing build."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.ledger import LEAKS, MEANINGS, Flow, Kind, kind_of
from nodeagent.model import Reason, Verdict
from nodeagent.web import assets
from nodeagent.web.download import csv_text, json_text
from nodeagent.web.overview import MOST_DESTINATIONS, MOST_PODS, overview

REASONS = [reason for reason in Reason if reason is not Reason.LOOPBACK]

flows = st.builds(
    Flow,
    namespace=st.sampled_from(["shop", "payments"]),
    pod=st.integers(0, 40).map(lambda number: f"pod-{number}"),
    container=st.just("app"),
    destination=st.integers(0, 60).map(lambda number: f"192.0.2.{number}"),
    address=st.none(),
    port=st.none(),
    protocol=st.just("tcp"),
    verdict=st.sampled_from([str(verdict) for verdict in Verdict]),
    reason=st.sampled_from([str(reason) for reason in REASONS]),
    connections=st.integers(0, 9),
    packets=st.integers(0, 9),
    bytes=st.integers(0, 1 << 40),
    payload=st.integers(0, 9),
    received_bytes=st.integers(0, 9),
)


def flow(pod: str, destination: str, reason: str, size: int, verdict: str = "bypassed") -> Flow:
    return Flow("shop", pod, "app", destination, None, None, "tcp", verdict, reason, 1, 1, size, size, 0)


def test_every_reason_of_the_ledger_has_a_meaning() -> None:
    assert set(MEANINGS) == set(REASONS)
    assert all(kind_of("bypassed", reason) is Kind.LEAK for reason in LEAKS)
    assert not [reason for reason in REASONS if reason not in LEAKS and kind_of("bypassed", reason) is Kind.LEAK]


@given(st.lists(flows, max_size=200))
def test_the_picture_is_bounded_and_leaves_nothing_out(found: list[Flow]) -> None:
    made = overview(found)
    assert sum(why["bytes"] for why in made["egress"]) == sum(each.bytes for each in found)
    for kind in Kind:
        wanted = sum(each.bytes for each in found if kind_of(each.verdict, each.reason) is kind)
        drawn = sum(link["bytes"] for link in made["links"] if link["kind"] == kind)
        assert drawn == (0 if kind is Kind.PROXY else wanted)
    assert len({(link["namespace"], link["pod"]) for link in made["links"]}) <= MOST_PODS + 1
    assert len({link["destination"] for link in made["links"]}) <= MOST_DESTINATIONS + 1


def test_a_leak_of_a_few_bytes_is_in_the_picture_among_hundreds_of_larger_flows() -> None:
    crowd = [flow(f"pod-{n}", f"192.0.2.{n}", "excluded_cidr", 10**9) for n in range(200)]
    links = overview([*crowd, flow("quiet", "203.0.113.9", "rules_missing", 60)])["links"]
    assert ("quiet", "203.0.113.9", "leak") in {(each["pod"], each["destination"], each["kind"]) for each in links}


@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 1200])
def test_files_hold_every_row_once_however_many_there_are(count: int) -> None:
    rows = [{"pod": f"pod-{number}", "bytes": number} for number in range(count)]
    as_csv = "".join(csv_text(["pod", "bytes"], rows))
    assert [row["pod"] for row in csv.DictReader(io.StringIO(as_csv, newline=""))] == [row["pod"] for row in rows]
    assert json.loads("".join(json_text(["pod", "bytes"], rows))) == rows


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://evil.example")']
)
def test_a_spreadsheet_computes_nothing_that_a_pods_owner_wrote(text: str) -> None:
    [_, row] = csv.reader(io.StringIO("".join(csv_text(["detail"], [{"detail": text}])), newline=""))
    assert row == [f"'{text}"]


def test_a_checkout_without_a_built_page_says_how_to_build_it(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("half a build")
    [(name, asset)] = assets.load(tmp_path).items()
    assert name == "index.html"
    assert "make page" in asset.body.decode()
