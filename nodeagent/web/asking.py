"""``nodeagent wait`` asks here, in one datagram, whether the rules of its own pod stand.

UDP, because it is never redirected and never a leak: a TCP connection that asks before the rules stand would be one,
and one that asks afterwards would end in the sidecar.  A pod is known by the address that it asks from, so nobody has
to say who he is, and nobody is told of others.  An answer is never longer than its question: nothing is amplified.
"""

import asyncio
import socket
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from typing import Final

import structlog

from nodeagent.agent.loop import Agent
from nodeagent.agent.pod import Pod, Source, Stage
from nodeagent.agent.roster import Roster
from nodeagent.errors import printable
from nodeagent.model import Address
from nodeagent.web.question import LENGTH, NOT_YET, NOTHING, QUESTION, STANDS

_IP_PKTINFO: Final = 8  # linux/in.h
_LONGEST_INFO: Final = 20  # struct in6_pktinfo


class Asked:
    """Answers for the pods of *roster* at *sock*, until it is closed; from the address that was asked.

    A node has several addresses, and a pod that asked one of them takes no answer from another.  What the kernel does
    not take is dropped, and nothing is kept for those who lie: it keeps what goes to addresses that nobody has, a few
    hundred answers, for three seconds, and whoever asks asks again.
    """

    def __init__(self, roster: Roster, sock: socket.socket) -> None:
        self._roster, self._sock = roster, sock
        asyncio.get_running_loop().add_reader(sock, self._hear)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._sock.getsockname()[1])

    def close(self) -> None:
        """Answer no more."""
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()

    def _hear(self) -> None:
        """Answer one question; what is none is nobody's."""
        with suppress(OSError):  # nobody is there any more, or the kernel takes no more
            data, ancillary, _, peer = self._sock.recvmsg(LENGTH, socket.CMSG_SPACE(_LONGEST_INFO))
            if data.startswith(QUESTION) and len(data) >= LENGTH:
                said = answer(self._roster, _address(peer[0])).encode()[:LENGTH]
                self._sock.sendmsg([said], [_reply(*each) for each in ancillary], 0, peer)


def _reply(level: int, kind: int, info: bytes) -> tuple[int, int, bytes]:
    """Return where to answer from, of where a question arrived: the same address, by whichever device leads back."""
    if level == socket.IPPROTO_IP:  # struct in_pktinfo: device, own address, address in the header
        return level, kind, bytes(4) + info[4:8] + bytes(4)
    return level, kind, info[:16] + bytes(4)  # struct in6_pktinfo: address, device


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


def listen(agent: Agent, place: str) -> Asked | None:
    """Answer at ``ADDRESS:PORT``; where that cannot be, say so: only those who ask will miss it."""
    host, _, port = place.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.bind((host, int(port)))
    except OSError as error:
        sock.close()
        structlog.get_logger().warning("nodeagent wait will not be answered", place=place, error=error.strerror)
        return None
    return Asked(agent.roster, sock)
