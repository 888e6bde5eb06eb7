"""An empty namespace to live in, proofs before every visit elsewhere.

:class:`Home` moves the calling process into a new, empty network namespace for good.  From
there it visits others, one at a time: a visit that fails to begin or to end leaves the
process in an empty namespace, or ends it; it never finds itself in the host's.

It refuses the host's namespace by three marks: it is the one that the kernel booted with, that of
PID 1, or the one that this process came from, by identity and by cookie.  (Where PID 1 may not be looked
at, the others remain.  In a container, which comes from a pod's, it has to be looked at.)  It refuses a
namespace without the addresses that it should have, and anything that is not a network namespace.

A pod of the cluster is looked for by its cgroup.  Of a process that is found there three things have to
be true: its own cgroup names the pod, its namespace has the pod's addresses, and is not the host's.  A pod
that is only just starting has no known address: then its namespace has to be one that the container runtime
keeps by name, where nobody but the host's root can put one, and whose network is set up (docs/adr/0016).

How a process's namespace is opened depends on where it is kept, and only that (docs/adr/0021).
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nodeagent import netlink
from nodeagent.errors import GoneError, InputError, KernelError, NodeagentError, Refusal, RefusedError, printable
from nodeagent.model import Address
from nodeagent.netns import kernel, nsid
from nodeagent.netns.inhabited import Inhabitants, PodNetns, belongs_to, kept_namespaces
from nodeagent.netns.kept import Kept, number_of, own_number
from nodeagent.netns.veth import FarEnd, far_ends
from nodeagent.runtime.cgroups import NETNS_PATH


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace that was proven: its identity, and its cookie where the kernel has them.

    ``same_user`` says whether it belongs to our own user namespace; a pod's with
    ``hostUsers: false`` does not.
    """

    identity: tuple[int, int]
    cookie: int | None
    same_user: bool = True


class Home:
    """This process's own empty namespace, and the ones that it must never touch.

    Call it once, early, in a process with a single thread that no longer needs the network.
    """

    def __init__(self, proc: Path = Path("/proc"), kept: str = NETNS_PATH) -> None:
        """*proc* shows the node's processes; in *kept*, the container runtime keeps namespaces by name."""
        self._proc, self._inhabitants, self._kept = proc, Inhabitants(proc), Kept(kept, self._look)
        self._doors: list[int] = []  # to the host's namespaces: this process never goes through them again
        try:
            self._came_from_initial = kernel.is_initial()  # then its identity says the same, and faster
            self._hosts = tuple(self._recognise_hosts())
            kernel.unshare_netns()
        except OSError as error:
            message = f"no network namespace for us ({error.strerror}): run as root, or with SYS_ADMIN and NET_ADMIN"
            raise KernelError(message) from None
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._own = kernel.identity(self._home)
        self._user = kernel.own_user_namespace()

    def _recognise_hosts(self) -> Iterator[Place]:
        if self._inhabitants.is_own:  # else we came from a pod's, our own: it is like any other
            yield _here()
            self._doors.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        for proc in dict.fromkeys((self._proc, Path("/proc") if self._inhabitants.is_own else self._proc)):
            descriptor = self._open_first(proc / "1/ns/net")
            if descriptor is None:
                continue  # it has capabilities that we have not
            if self._doors and kernel.identity(descriptor) == _here().identity:
                os.close(descriptor)
                continue
            self._doors.append(descriptor)
            kernel.set_netns(descriptor)
            yield _here()

    def _open_first(self, path: Path) -> int | None:
        """Open the namespace of the node's first process; None where that cannot be, and the others will do.

        Raises:
            KernelError: they will not: we live in a container.
        """
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if self._inhabitants.is_own:
                return None
            reason = f"cannot open {path} ({error.strerror}), and so not tell the host's network namespace from a pod's"
            raise KernelError(f"{reason}: mount the host's /proc there, and give us SYS_PTRACE") from None

    @contextmanager
    def visit(
        self, netns: str | int | PodNetns, addresses: tuple[Address, ...] = (), cookie: int | None = None
    ) -> Iterator[Place]:
        """Enter *netns* (a path, a PID, or a pod's), proven, for the length of the block.

        Raises:
            InputError: it is not there, or not a network namespace.
            RefusedError: it is the host's, has not all of *addresses*, or is not the one that *cookie* names.
            GoneError: its process ended meanwhile.
        """
        with self._opened(netns, addresses, cookie) as descriptor, self._entered(descriptor):
            place = self._prove(printable(str(netns)), kernel.identity(descriptor), addresses, cookie)
            yield replace(place, same_user=kernel.user_namespace(descriptor) == self._user)

    def number(
        self, netns: str | int | PodNetns, addresses: tuple[Address, ...] = (), cookie: int | None = None
    ) -> int:
        """Return this home's own number (nsid) of *netns*, given if it has none; it pins nothing.

        Raises:
            InputError: it is not there, or not a network namespace.
            RefusedError: it is the host's, or not the pod's.
            KernelError: the kernel refuses.
        """
        with self._opened(netns, addresses, cookie) as descriptor:
            return nsid.give_number(descriptor)

    @contextmanager
    def _opened(self, netns: str | int | PodNetns, addresses: tuple[Address, ...], cookie: int | None) -> Iterator[int]:
        """Give a descriptor of *netns*, which is neither the host's nor ours, for the length of the block."""
        name = printable(str(netns))
        if netns in (1, "/proc/1/ns/net"):  # by name as well: it cannot be opened everywhere
            raise RefusedError(_host_message(name), Refusal.HOST_NETNS)
        descriptor = self._open_pod(netns, addresses, cookie) if isinstance(netns, PodNetns) else self._open(netns)
        try:
            self._refuse_ours(name, descriptor)
            yield descriptor
        finally:
            os.close(descriptor)

    def link(self, netns: str | int | PodNetns, addresses: tuple[Address, ...] = ()) -> netlink.Link:
        """Return a socket that asks about the devices of *netns*, from wherever it is used; errors as of a visit."""
        with self.visit(netns, addresses):
            return netlink.Link(socket.NETLINK_ROUTE)

    def far_ends(self, link: netlink.Link) -> list[FarEnd]:
        """Return the other ends of the veths that *link* knows of, where they are the host's; see :func:`far_ends`."""
        return far_ends(link, self._doors)

    def _refuse_ours(self, name: str, descriptor: int) -> None:
        if kernel.identity(descriptor) in {host.identity for host in self._hosts}:
            raise RefusedError(_host_message(name), Refusal.HOST_NETNS)
        if kernel.identity(descriptor) == self._own:
            message = f"{name} is the programmer's own, empty network namespace; give a pod's"
            raise RefusedError(message, Refusal.HOST_NETNS)

    @contextmanager
    def _entered(self, descriptor: int) -> Iterator[None]:
        kernel.set_netns(descriptor)
        try:
            yield
        finally:
            self._return()

    def _open_pod(self, pod: PodNetns, addresses: tuple[Address, ...], cookie: int | None) -> int:
        """Open the one namespace, of those that the pod's processes live in, that passes all proofs."""
        if not (addresses or pod.kept):
            message = f"{pod}: the pod has no address yet that would prove it"
            raise RefusedError(message, Refusal.MISSING_ADDRESS)
        error: NodeagentError = InputError(f"{pod}: no process lives in {pod.cgroup} (any more, or yet)")
        for process in self._inhabitants.of(pod):
            try:
                return self._open_inhabited(pod, process, addresses, cookie)
            except (InputError, RefusedError, GoneError) as refusal:
                error = refusal
        raise error

    def _open_inhabited(self, pod: PodNetns, process: int, addresses: tuple[Address, ...], cookie: int | None) -> int:
        name = f"{pod} (process {process})"
        descriptor = self._open_process(process, pod)
        try:
            if not addresses:
                _prove_kept(name, pod, descriptor)  # first: a process may still be on its way out of the host's
            self._refuse_ours(name, descriptor)
            with self._entered(descriptor):
                self._prove(name, kernel.identity(descriptor), addresses, cookie)
                if not addresses:
                    _prove_network(name)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def listen(self) -> int:
        """Return a descriptor of a socket, of this home, that hears of nft changes in all numbered namespaces."""
        return nsid.listen()

    def _open(self, netns: str | int) -> int:
        return self._open_process(netns) if isinstance(netns, int) else _open_path(netns)

    def _open_process(self, pid: int, pod: PodNetns | None = None) -> int:
        """Open a process's namespace; of *pod*'s it has to be.

        An open directory of /proc is one process's for good, as a pidfd is, whoever is given its number: and it
        can be had of processes that have no number in our own PID namespace.
        """
        try:
            process = os.open(self._proc / str(pid), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            message = f"no process has PID {pid}: the pod may have ended; give a live one"
            raise InputError(message) from None
        try:
            if pod:
                _prove_inhabits(process, pid, pod)
            kept = self._open_kept(process)
            return _open_path("ns/net", str(self._proc / str(pid) / "ns/net"), process) if kept is None else kept
        finally:
            os.close(process)

    def _open_kept(self, process: int) -> int | None:
        """Open the namespace that a process lives in by the name that the runtime keeps it by; None if it has none.

        Whatever led there, it is the process's: ours by number while we are in it, and the process's after that.
        """
        number = number_of(process)
        descriptor = None if number is None else self._kept.open(number)
        if descriptor is None:
            return None
        if self._look(descriptor) == number == number_of(process):
            return descriptor
        os.close(descriptor)
        return None

    def _look(self, descriptor: int) -> int:
        """Return the number that /proc has for a namespace; 0 if it is the host's, or ours."""
        if kernel.identity(descriptor) in {self._own, *(host.identity for host in self._hosts)}:
            return 0
        with self._entered(descriptor):
            return own_number(self._proc)

    def _prove(self, name: str, wanted: tuple[int, int], addresses: tuple[Address, ...], cookie: int | None) -> Place:
        place = _here()
        if not self._came_from_initial and kernel.is_initial():
            raise RefusedError(_host_message(name), Refusal.HOST_NETNS)
        if place.identity != wanted:
            message = f"{name}: the kernel put us elsewhere; nothing was changed"
            raise RefusedError(message, Refusal.WRONG_NETNS)
        for host in self._hosts:
            if place.identity == host.identity or (place.cookie and place.cookie == host.cookie):
                raise RefusedError(_host_message(name), Refusal.HOST_NETNS)
        if cookie is not None and place.cookie != cookie:
            message = f"{name} is another network namespace than the pod's was: look again; nothing was changed"
            raise RefusedError(message, Refusal.WRONG_NETNS)
        missing = set(addresses) - kernel.local_addresses() if addresses else None
        if missing:
            lost = ", ".join(sorted(map(str, missing)))
            message = f"{name} has no address {lost}: it is not this pod's; give the pod's own"
            raise RefusedError(message, Refusal.MISSING_ADDRESS)
        return place

    def _return(self) -> None:
        try:
            kernel.set_netns(self._home)
        except OSError:
            os._exit(70)  # stranded in a pod's namespace: nothing that follows would be safe


def _prove_inhabits(process: int, pid: int, pod: PodNetns) -> None:
    try:
        descriptor = os.open("cgroup", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
        with open(descriptor, encoding="utf-8", errors="replace") as file:  # noqa: PTH123  # Path knows no descriptor
            cgroups = file.read()
    except OSError:
        message = f"process {pid} ended meanwhile: nothing was changed"
        raise GoneError(message) from None
    if not belongs_to(pod, cgroups):
        message = f"process {pid} is not one of pod {pod.name}: its cgroup does not say so; nothing was changed"
        raise RefusedError(message, Refusal.WRONG_NETNS)


def _here() -> Place:
    """Return the place that new sockets of this thread belong to: the socket says so itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return Place(kernel.socket_netns(probe), kernel.socket_cookie(probe))


def _prove_kept(name: str, pod: PodNetns, descriptor: int) -> None:
    if kernel.identity(descriptor) not in kept_namespaces(pod.kept):
        raise InputError(f"{name}: no namespace that the container runtime keeps in {printable(pod.kept)}, yet")


def _prove_network(name: str) -> None:
    """Make sure that this thread's namespace has an address by which others could know a pod."""
    if not any(map(_is_anybodys, kernel.local_addresses())):
        raise InputError(f"{name}: its network is not set up yet")


def _is_anybodys(address: Address) -> bool:
    return not (address.is_loopback or address.is_link_local)


def _host_message(name: str) -> str:
    return f"{name} is the host's network namespace: it is never programmed; give a pod's"


def _open_path(path: str, shown: str = "", directory: int | None = None) -> int:
    """Open a network namespace, below *directory* if that is given; messages call it *shown*."""
    shown = shown or path
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=directory)
    except PermissionError:
        name = printable(shown)
        message = f"cannot open network namespace {name}: permission denied; its process can do more than we can"
        raise KernelError(message) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        message = (
            f"cannot open network namespace {printable(shown)}: {reason}; "
            "give a path such as /proc/PID/ns/net or /run/netns/NAME, or a PID"
        )
        raise InputError(message) from None
    if not kernel.is_netns(descriptor):
        os.close(descriptor)
        message = f"{printable(shown)} is not a network namespace; give one such as /proc/PID/ns/net"
        raise InputError(message)
    return descriptor
