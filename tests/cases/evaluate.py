"""An interpreter of rule sets: what rules would do, without a kernel.

Deliberately simple, so that a reader can see that it is right; the kernel tests hold the real
backends against the same cases.
"""

from nodeagent.model import Bypass, Connection, Hook, Match, Protocol, Redirect, RuleSet


def redirect_port(ruleset: RuleSet, connection: Connection) -> int | None:
    """Return the port that *connection*'s first packet is redirected to, if it is."""
    for rule in ruleset.chain(Hook.REDIRECT):
        if matches(rule.match, connection, ruleset):
            match rule.action:
                case Redirect(port):
                    return port
                case Bypass():
                    return None
    return None


def matches(match: Match, connection: Connection, ruleset: RuleSet) -> bool:
    """Say whether every part of *match* holds for the first packet of *connection*."""
    c = connection
    checks = (
        match.family in (None, c.destination.version),
        match.out_interface in (None, c.interface),
        match.uid in (None, c.uid),
        match.gid in (None, c.gid),
        match.protocol in (None, c.protocol),
        match.destination is None or _in_destination(match, c, ruleset),
        not match.ports or any(c.port in ports for ports in match.ports),
        not match.syn or c.protocol is Protocol.TCP,
    )
    return all(checks)


def _in_destination(match: Match, connection: Connection, ruleset: RuleSet) -> bool:
    address = connection.destination
    if isinstance(match.destination, str):
        networks = next(s.networks for s in ruleset.sets if s.name == match.destination)
    else:
        networks = (match.destination,)  # type: ignore[assignment]  # not None: the caller saw to it
    return any(address.version == net.version and address in net for net in networks)
