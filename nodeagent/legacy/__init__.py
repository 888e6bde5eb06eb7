"""The ``legacy`` backend: iptables' own kernel tables, encoded once and replayed as bytes.

Promises, for each table: one replacement puts all of ours in place, or none; strangers' rules
keep their bytes, order and counters; a table that holds the right thing already is not
written.  Reading creates no table and loads no module.

Refuses to remove a chain that a stranger jumps to, and to write tables it cannot parse.
"""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

from nodeagent.bpf.lpm import ensure_pinned
from nodeagent.compile import compile_policy
from nodeagent.compile.canonical import to_json
from nodeagent.compile.legacy import DEFAULT_BPFFS, TABLES, pin_path
from nodeagent.errors import KernelError, NodeagentError, printable
from nodeagent.legacy.encoder import Encoded, Result
from nodeagent.legacy.lock import xtables_lock
from nodeagent.legacy.splice import Layered, emptied, splice, take_apart
from nodeagent.legacy.state import expected_state, interpret
from nodeagent.legacy.write import Change, replace_table
from nodeagent.legacy.xtables import Kernel, has_family, table_names
from nodeagent.model import BackendName, Family, KernelState, Policy, Program, Reading, RuleSet

LOCK_PATIENCE: Final = 1.0
"""Seconds to wait for iptables' lock."""

_ENCODING_SECONDS: Final = 120.0
_CACHED_PAYLOADS: Final = 256
