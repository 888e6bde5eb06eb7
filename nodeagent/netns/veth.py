"""The other ends of a pod's veths, where they are in a namespace that we were given, and nowhere else.

What the kernel tells inside the pod is a number (nsid) of the other end's namespace, and an ifindex there.  The
same number for a descriptor that we hold is the proof that both are one namespace: a number names one and
only one while either lives, and whoever owns the pod cannot make it name another.
Sources: ``linux/if_link.h``, ``linux/rtnetlink.h``, ``net/core/rtnetlink.c``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import unpack
from typing import Final

from nodeagent import netlink
from nodeagent.errors import KernelError, printable
from nodeagent.netns.nsid import number_of

_RTM_GETLINK: Final = 18
_HEADER: Final = bytes(16)  # struct ifinfomsg
_NAME, _LINK, _LINKINFO, _LINK_NETNSID = 3, 5, 18, 37
_KIND: Final = 1


@dataclass(frozen=True, slots=True)
class FarEnd:
    """A device of the namespace behind the descriptor ``namespace``: the other end of a pod's veth."""

    namespace: int
    interface: int


@dataclass(frozen=True, slots=True)
class _Device:
    name: str
    kind: str
    peer: int
    number: int


def far_ends(link: netlink.Link, namespaces: Sequence[int]) -> list[FarEnd]:
    """Return where in *namespaces* the veths end that *link*, a socket of a pod's namespace, knows of.

    It waits for whoever changes a device anywhere on the node: on one that starts pods, for a long time.

    Raises:
        KernelError: nowhere; the message says what there is instead.
    """
    try:
        devices = [device for device in _devices(link) if device.kind or device.name != "lo"]
        numbers = {number_of(link, descriptor): descriptor for descriptor in namespaces}
    except OSError as error:
        raise KernelError(f"its network devices cannot be listed: {error.strerror}") from None
    numbers.pop(-1, None)  # the kernel's word for: has none
    veths = [device for device in devices if device.kind == "veth"]
    found = [FarEnd(numbers[veth.number], veth.peer) for veth in veths if veth.number in numbers]
    if not found:
        names = ", ".join(f"{printable(device.name)} ({device.kind or 'no kind'})" for device in devices[:4])
        where = "no veth of it ends in the host's namespace" if veths else "it has no veth"
        raise KernelError(f"{where}: it has {names or 'loopback only'}")
    return found


def _devices(link: netlink.Link) -> Iterator[_Device]:
    for frame in link.dump_frames(_RTM_GETLINK, _HEADER):
        found = dict(netlink.attributes(frame.payload[len(_HEADER) :]))
        info = dict(netlink.attributes(found.get(_LINKINFO, b"")))
        peer = int(unpack("=i", found.get(_LINK, bytes(4)))[0])
        number = int(unpack("=i", found[_LINK_NETNSID])[0]) if _LINK_NETNSID in found else -1
        yield _Device(netlink.string(found.get(_NAME)), netlink.string(info.get(_KIND)), peer, number)
