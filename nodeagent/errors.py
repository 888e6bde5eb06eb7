"""Errors whose class answers one question, what the caller should do next.

Every message names the thing, the value and the way out, in one line.  Text that came from
outside goes through :func:`printable` first.  The command line maps each class to its exit
code; nothing else in the package knows about exit codes.
"""

from enum import StrEnum
from typing import ClassVar, Self

SHOWN = 128
"""Characters of foreign text that a message or a log line may carry."""


def printable(text: str, limit: int = SHOWN) -> str:
    r"""Return *text* as printable ASCII, escaped and cut to *limit* characters.

    >>> printable("10.0.0.0/8\n-A OUTPUT")
    '10.0.0.0/8\\n-A OUTPUT'
    >>> printable("x" * 200, limit=5)
    'xxxxx...'
    """
    head = text[:limit]
    escaped = head.encode("unicode_escape").decode("ascii")
    return escaped[:limit] + ("..." if len(text) > limit or len(escaped) > limit else "")


class NodeagentError(Exception):
    """Anything that this package raises on purpose."""

    exit_code: ClassVar[int] = 3

    def saying(self, message: str) -> Self:
        """Return the same error with another message.

        >>> error = RefusedError("no", Refusal.OTHER_TOOL).saying("still no")
        >>> (str(error), error.reason.value)
        ('still no', 'other_tool')
        """
        other = type(self).__new__(type(self), message)
        other.args, other.__dict__ = (message,), self.__dict__.copy()
        return other


class InputError(NodeagentError):
    """What the user gave is wrong: tell them, change nothing, do not retry."""

    exit_code = 2


class KernelError(NodeagentError):
    """The kernel refused: the message says what this kernel lacks, and what was changed before, if anything was."""

    exit_code = 3


class BusyError(KernelError):
    """Somebody else is at work on the same tables: try again later."""


class GoneError(KernelError):
    """The network namespace or its process went away meanwhile: forget the pod."""


class Refusal(StrEnum):
    """Why we refuse: a closed set, and a metric's label."""

    HOST_NETNS = "host_netns"
    """The namespace is the host's, or the programmer's own."""
    HOST_NETWORK = "host_network"
    """The pod says that it uses the host's network."""
    MISSING_ADDRESS = "missing_address"
    """The namespace has not all of the pod's addresses, or none are known that would prove it."""
    WRONG_NETNS = "wrong_netns"
    """It is another one than the pod's was, or its process is no longer, or not, the pod's."""
    SHARED_NETNS = "shared_netns"
    """Another pod of the node lives in it."""
    OTHER_TOOL = "other_tool"
    """Another tool redirects there, or holds what we would have to change."""
    OTHER_AGENT = "other_agent"
    """Another agent runs on this node."""
    NOT_ALLOWED = "not_allowed"
    """The programmer does no such thing for whoever asks, or the other side of its socket is not who it should be."""


class RefusedError(NodeagentError):
    """We refuse: a wrong namespace, or another tool's redirect.  Nothing was changed."""

    exit_code = 4

    def __init__(self, message: str, reason: Refusal) -> None:
        super().__init__(message)
        self.reason = reason


class AnotherAgentError(RefusedError):
    """Another agent runs on this node: end one of the two, or wait."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Refusal.OTHER_AGENT)


class StateError(NodeagentError):
    """What should outlive the agent cannot be read or written: go on without it, and say so."""

    exit_code = 3


class UnreachableError(NodeagentError):
    """The agent or the programmer does not answer: nothing is known of the outcome."""

    exit_code = 5


class InternalError(NodeagentError):
    """A fault of our own: how far it got is unknown; look with ``diff``, and report it."""
