"""Process ids and inodes that are used again, thousands of times, while a pod is being programmed.

``NODEAGENT_REUSES=N``: that many times; ten thousand were seen.
"""

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.kernel.recycle_driver import KINDS
from tests.lab.cgroups import TestCgroup

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

REUSES = int(os.environ.get("NODEAGENT_REUSES", "1000"))


@pytest.mark.fault(14)
@pytest.mark.fault(15)
@pytest.mark.fault(16)
def test_no_process_that_takes_anothers_number_is_programmed_for_it(tmp_path: Path) -> None:
    """Nor does one that ends in the middle leave anything behind: no descriptor, no hang."""
    log = tmp_path / "lived"
    with TestCgroup() as root:
        command = [sys.executable, "-m", "tests.kernel.recycle_driver", str(REUSES), str(root.path), str(log)]
        private = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        done = subprocess.run([*private, *command], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    cookies, inodes = defaultdict[str, set[str]](set), Counter[str]()
    for line in log.read_text().splitlines():
        kind, cookie, inode = line.split(":")
        cookies[kind].add(cookie)
        inodes[inode] += kind != "host"
    assert {kind: len(cookies[kind]) for kind in KINDS} == dict.fromkeys(KINDS, REUSES // 4) | {"host": 1}
    assert inodes.most_common(1)[0][1] > 1, "inodes were used again"
    written = set(found["written"])
    assert written <= cookies["pod"]
    assert len(written) > REUSES // 40, "the pod itself was programmed, too"
    assert {"RefusedError", "InputError"} <= found["refused"].keys(), found["refused"]
    before, after = found["descriptors"]
    assert after <= before + 2
    assert found["works"]
    print(f"{REUSES} processes of one number: {len(written)} written, refused {found['refused']}, {len(inodes)} inodes")
