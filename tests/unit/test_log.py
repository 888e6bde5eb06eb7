"""Events reach standard error one by one, whoever else writes there."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import structlog

from nodeagent.log import MOST_A_MINUTE, Limit

_LOGS = """
import structlog
from nodeagent.log import Logging, configure_logging
configure_logging(Logging("info", "json"))
for number in range(3):
    structlog.get_logger().info("event", number=number, text="x" * 400)
"""


def test_an_event_is_one_write_so_that_two_processes_never_tear_each_others_lines() -> None:
    """A socket of datagrams keeps writes apart."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}  # as images have it
        subprocess.run([sys.executable, "-c", _LOGS], stderr=theirs.fileno(), env=unbuffered, check=True)
        ours.settimeout(0)
        lines = [ours.recv(4096) for _ in range(3)]
    assert [json.loads(line)["number"] for line in lines] == [0, 1, 2]
    assert all(line.endswith(b"\n") for line in lines)


def test_whoever_makes_something_happen_for_ever_does_not_fill_the_log() -> None:
    now = 0.0
    limit = Limit(lambda: now)

    def passed(times: int, kind: str = "refused", method: str = "warning") -> list[Any]:
        found = []
        for number in range(times):
            try:
                found.append(limit(None, method, {"event": kind, "number": number}))
            except structlog.DropEvent:
                continue
        return found

    first = passed(MOST_A_MINUTE + 7)
    assert [event["number"] for event in first] == list(range(MOST_A_MINUTE))
    assert [event["number"] for event in first if "more" in event] == [MOST_A_MINUTE - 1]
    assert len(passed(3, kind="another")) == 3
    assert len(passed(MOST_A_MINUTE + 1, method="info")) == MOST_A_MINUTE + 1, "who asks for it gets it"
    now = 60.0
    assert [event.get("left_out") for event in passed(2)] == [7, None]
