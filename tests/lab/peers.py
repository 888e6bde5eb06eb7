"""The peers, seen from the test process: whoever can be at the other end of a connection."""

import errno
from dataclasses import dataclass

from tests.lab.netns import Netns
from tests.lab.process import LabError, LabProcess
from tests.lab.wire import Greeting

_DNS_PORT = 53
EVERYWHERE = ("0.0.0.0", "::")
"""The wildcard address of each family."""


@dataclass(frozen=True, slots=True)
class Event:
    """One accepted connection or one datagram, as the peer that got it saw it."""

    proto: str
    token: str
    greeting: Greeting


class Peer:
    """A process inside a namespace that listens there as *who*; its own sockets belong to *uid* and *gid*."""

    def __init__(self, netns: Netns, who: str, *, uid: int = 0, gid: int = 0) -> None:
        """Start the process; nothing listens yet."""
        self.who = who
        self.process = LabProcess("tests.lab.peer_process", str(uid), str(gid), within=netns.enter)
        self._served: set[tuple[str, int]] = set()

    def close(self) -> None:
        """End the process, its listeners and its connections."""
        self.process.close()

    def listen(self, proto: str, address: str, port: int, *, transparent: bool = False, dns: bool = False) -> int:
        """Listen on one address; return the port, which the kernel chooses if *port* is 0; OSError if it is taken."""
        role = {"who": self.who, "transparent": transparent, "dns": dns}
        taken, _ = self.process.call("listen", where=[proto, address, port], role=role)
        return int(taken)

    def serve(self, proto: str, port: int) -> None:
        """See to it that *port* answers in both families, unless somebody else has it; cheap the second time."""
        if (proto, port) in self._served:
            return
        for address in EVERYWHERE:
            try:
                self.listen(proto, address, port, dns=port == _DNS_PORT)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        self._served.add((proto, port))

    def hush(self, proto: str, address: str, port: int) -> None:
        """Stop listening there; connections that are open stay open."""
        self.process.call("hush", where=[proto, address, port])
        self._served.discard((proto, port))

    def passthrough(self, *, on: bool) -> None:
        """From now on, splice redirected TCP connections to their original destination, or end them here."""
        self.process.call("passthrough", on=on)

    def events(self) -> tuple[Event, ...]:
        """Return everything seen since the start or since `forget`; LabError if there was more than is kept."""
        log, _ = self.process.call("log")
        if log["lost"]:
            raise LabError(f"{self.who} saw {log['lost']} events more than it keeps: forget() now and then")
        return tuple(_event(entry) for entry in log["entries"])

    def forget(self) -> None:
        """Empty the log."""
        self.process.call("forget")

    def find(self, token: str, patience: float = 0.0) -> Event | None:
        """Return the newest event with *token*, waiting up to *patience* seconds for it to happen."""
        entry, _ = self.process.call("find", token=token, patience=patience)
        return _event(entry) if entry else None

    def say(self, greeting: Greeting, token: str) -> bool:
        """Speak first, on the open TCP connection that was greeted with *greeting*; False if it has gone."""
        said, _ = self.process.call("say", greeting=greeting.encode().decode(), token=token)
        return bool(said)


def _event(entry: list[str]) -> Event:
    proto, token, line = entry
    greeting = Greeting.parse(line.encode())
    if greeting is None:
        raise LabError(f"a peer wrote down {line!r}")
    return Event(proto, token, greeting)
