"""The programmer in a child process.

The child moves into an empty network namespace before it reads its first request, and ends
when its socket closes.  The parent never calls ``setns``.
"""

import socket
import subprocess
import sys
from types import TracebackType
from typing import Self

from nodeagent.errors import NodeagentError
from nodeagent.log import Logging
from nodeagent.programmer.client import SeamClient

_MODULE = "nodeagent.programmer.child"


class ChildProgrammer(SeamClient):
    """A :class:`~nodeagent.programmer.seam.Programmer` in a child; a context manager.

    Raises:
        KernelError: on entering the context, if this process lacks the privilege.
    """

    def __init__(self, logging: Logging = Logging(), proc: str = "/proc") -> None:  # noqa: B008  # frozen
        """*proc*: where the node's processes are; in a container the host's, if it is mounted there."""
        ours, theirs = socket.socketpair()
        super().__init__(ours)
        with theirs:
            self._child = subprocess.Popen(  # our own interpreter and module
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), proc, logging.level, logging.style],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the parent: its end is the child's
            )

    def __enter__(self) -> Self:
        """Wait until the child has settled in its namespace."""
        try:
            self._answer(dict[str, bool])
        except NodeagentError:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the child."""
        self.close()

    @property
    def pid(self) -> int:
        """Process ID of the child."""
        return self._child.pid

    def close(self) -> None:
        """End the child and wait for it."""
        super().close()
        self._child.wait()
