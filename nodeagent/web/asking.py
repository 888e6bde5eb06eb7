"""``nodeagent wait`` asks here, in one datagram, whether the rules of its own pod stand.

UDP, because it is never redirected and never a leak: a TCP connection that asks before the rules stand would be one,
and one that asks afterwards would end in the sidecar.  A pod is known by the address that it asks from, so nobody has
to say who he is, and nobody is told of others.  An answer is never longer than its question: nothing is amplified.
"""

import asyncio
import socket
from ipaddress import IPv6Address, ip_address
from typing import Any

import structlog

from nodeagent.agent.loop import Agent
from nodeagent.agent.pod import Pod, Source, Stage
from nodeagent.agent.roster import Roster
from nodeagent.errors import printable
from nodeagent.model import Address
from nodeagent.web.question import LENGTH, NOT_YET, NOTHING, QUESTION, STANDS


class Asked(asyncio.DatagramProtocol):
    """Answers for the pods of *roster*."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._transport: asyncio.DatagramTransport | None = None
        self._is_full = False

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401  # asyncio's own type is wider than a datagram's
        """Begin."""
        self._transport = transport
        transport.set_write_buffer_limits(high=0)

    def pause_writing(self) -> None:
        """Answer nobody while the kernel takes no more: whoever asks asks again, and nothing is kept for those who lie.

        It keeps what goes to addresses that nobody has, a few hundred answers, for three seconds.
        """
        self._is_full = True

    def resume_writing(self) -> None:
        """Answer again."""
        self._is_full = False

    def datagram_received(self, data: bytes, peer: tuple[Any, ...]) -> None:
        """Answer one question; what is none is nobody's."""
        if self._transport and not self._is_full and data.startswith(QUESTION) and len(data) >= LENGTH:
            self._transport.sendto(answer(self._roster, _address(peer[0])).encode()[:LENGTH], peer)


def answer(roster: Roster, address: Address) -> str:
    """Return what a process of the pod at *address* is told."""
    found = [pod for pod in roster if address in pod.manifest.pod_ips and not pod.manifest.host_network]
    living = [pod for pod in found if not pod.retiring]
    if len(living) != 1:
        return f"{NOT_YET}: no pod of this node is known by the address {address}"
    return _about(living[0])


def _about(pod: Pod) -> str:
    detail = printable(pod.detail or pod.stage.value, 300)
    if pod.stage is Stage.INTERCEPTED and pod.in_sync:
        return f"{STANDS}: {pod.ruleset_id}"
    is_certain = pod.stage is Stage.SKIPPED and pod.source is not Source.RUNTIME
    return f"{NOTHING if is_certain or pod.stage is Stage.OBSERVED else NOT_YET}: {detail}"


def _address(text: str) -> Address:
    address = ip_address(text.partition("%")[0])
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


async def listen(agent: Agent, place: str) -> asyncio.DatagramTransport | None:
    """Answer at ``ADDRESS:PORT``; where that cannot be, say so: only those who ask will miss it."""
    host, _, port = place.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        sock.bind((host, int(port)))
    except OSError as error:
        sock.close()
        structlog.get_logger().warning("nodeagent wait will not be answered", place=place, error=error.strerror)
        return None
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: Asked(agent.roster), sock=sock)
    return transport
