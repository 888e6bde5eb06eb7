"""What the agent needed for a moment goes back to the kernel."""

import asyncio
import subprocess
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from nodeagent.agent import view
from nodeagent.web.snapshot import Snapshots

_HOLES = """
from pathlib import Path
from nodeagent.runtime.memory import be_frugal, give_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if {frugal}:
    be_frugal()
blocks = [bytes(2000) for _ in range(20_000)]
blocks = blocks[::100]
before = resident()
if {frugal}:
    give_back()
print(before - resident())
"""


@pytest.mark.parametrize("frugal", [True, False])
def test_what_is_free_between_blocks_goes_back_if_asked_for(frugal: bool) -> None:  # noqa: FBT001  # a case
    done = subprocess.run(
        [sys.executable, "-c", _HOLES.format(frugal=frugal)], capture_output=True, text=True, check=True
    )
    assert (int(done.stdout) > 20e6) is frugal


def test_a_snapshot_that_another_has_replaced_is_kept_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "flows", lambda _agent: [])
    request: Any = SimpleNamespace(headers={})
    agent: Any = None

    async def look_twice() -> None:
        snapshots = Snapshots(agent)
        first = weakref.ref(snapshots.take(request))
        assert first() is not None
        second = snapshots.take(request)
        assert first() is None
        assert snapshots.take(SimpleNamespace(headers={"Cache-Control": "max-age=5"})) is second  # type: ignore[arg-type]

    asyncio.run(look_twice())
