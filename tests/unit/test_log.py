"""Events reach standard error one by one, whoever else writes there."""

import json
import os
import socket
import subprocess
import sys

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
