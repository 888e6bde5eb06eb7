"""The ``nft`` backend: one table of our own, ``inet nodeagent``, for both families.

Works on the netns that the calling thread is in; opens a socket there for each call and closes
it again, because an open one would keep the netns alive.  Promises that a killed process, at
any moment, leaves the old rules or the new ones.  Never touches a table that is not ours.
"""

import errno
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nodeagent.compile.canonical import to_json
from nodeagent.errors import BusyError, KernelError, printable
from nodeagent.model import BackendName, KernelState, Program, Reading, RuleSet
from nodeagent.nft import replay, strangers
from nodeagent.nft.encoding import Encoded, load
from nodeagent.nft.state import PREFIX, dump_rules_and_sets, is_own, kernel_state
from nodeagent.nft.wire import InterruptedDumpError, Kind, Message, NetfilterSocket, NetlinkError, Proto, parse

ATTEMPTS: Final = 8
"""How often a write or a reading starts anew because somebody else changed the tables."""

ENCODE_SECONDS: Final = 120.0
"""How long the encoding child may take: 100,000 ranges on a slow machine, and some."""


class NftBackend:
    """Implements :class:`nodeagent.programmer.backend.Backend`."""

    name = BackendName.NFT

    def available(self) -> str | None:
        """Return None where the kernel has nf_tables, else the reason why not; changes nothing."""
        try:
            with NetfilterSocket() as netfilter:
                netfilter.dump(Kind.GETTABLE)
        except NetlinkError as error:
            return _explain(error)
        return None
