"""The container runtime's node resource interface: a pod's rules before its first container.

``Plugin(socket_path, handler).run()`` is all that the agent needs; see :class:`Handler`.
"""

from nodeagent.nri.calls import Call
from nodeagent.nri.frames import ProtocolError
from nodeagent.nri.handler import Answer, Handler, Outcome, Runtime
from nodeagent.nri.plugin import SOCKET_PATH, AbsentError, Dial, Plugin, connect
from nodeagent.nri.pods import Container, Sandbox
from nodeagent.nri.session import Settings

__all__ = [
    "SOCKET_PATH",
    "AbsentError",
    "Answer",
    "Call",
    "Container",
    "Dial",
    "Handler",
    "Outcome",
    "Plugin",
    "ProtocolError",
    "Runtime",
    "Sandbox",
    "Settings",
    "connect",
]
