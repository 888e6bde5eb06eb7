"""Names of Services, asked for by address, one object at a time, and only where an operator says that Services live.

Nothing is watched: every node would hear of every Service of the cluster.  An address belongs to a Service if the API
server has an IPAddress object of that name (``networking.k8s.io/v1``, Kubernetes 1.33 and newer), which both families
have, and which tells a name and nothing else.

Promises: :meth:`ServiceNames.learn` asks of an address once an hour, of at most :data:`MOST_AT_ONCE` a time, and for
:data:`LONGEST` seconds; what is remembered is bounded.  Whatever fails, an address is called by itself, and nobody is
asked for half a minute.
"""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Final

import msgspec
import structlog

from nodeagent.errors import NodeagentError, printable
from nodeagent.kube.client import Client, DeniedError, RequestError, UnavailableError
from nodeagent.model import Address, Network

MOST_AT_ONCE: Final = 16
MOST_KEPT: Final = 4096
LONGEST: Final = 1.0

_PATH: Final = "/apis/networking.k8s.io/v1/ipaddresses/"
_KNOWN_SECONDS: Final = 3600.0
_NOBODYS_SECONDS: Final = 600.0
_PAUSE_SECONDS: Final = 30.0
_AWAITED_SECONDS: Final = 5.0
_DENIED_SECONDS: Final = 600.0
_LABEL_RE: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NO_SUCH_KIND: Final = "could not find the requested resource"


class _Parent(msgspec.Struct, frozen=True):
    resource: str = ""
    namespace: str = ""
    name: str = ""


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    parent_ref: _Parent = _Parent()


class _IPAddress(msgspec.Struct, frozen=True):
    spec: _Spec = _Spec()


class ServiceNames:
    """What Services of *ranges* are called; *clock* counts seconds and never goes back."""

    def __init__(
        self, client: Client, ranges: Sequence[Network] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client, self._ranges, self._clock = client, tuple(ranges), clock
        self._known: OrderedDict[Address, tuple[str | None, float]] = OrderedDict()
        self._elsewhere: set[Address] = set()
        self._passed: set[Address] = set()
        """Addresses that somebody was told no name of, because it was not known yet."""
        self._awaited: dict[Address, float] = {}
        """Since when somebody waits for a name."""
        self._not_before = 0.0
        self.problem: str | None = None
        """Why no name can be had now; None where names can be, or nobody asked."""

    def configure(self, ranges: Sequence[Network]) -> None:
        """Ask of the addresses of *ranges* from now on, and of no others."""
        if tuple(ranges) != self._ranges:
            self._ranges = tuple(ranges)
            self._elsewhere.clear()
            self.problem = self.problem if ranges else None

    @property
    def is_asked(self) -> bool:
        """Whether there is anything to ask about."""
        return bool(self._ranges)

    def name(self, address: Address, _port: int) -> str | None:
        """Return ``NAME.NAMESPACE`` of the Service that *address* belongs to, as far as that is known."""
        if not self._ranges or self._is_elsewhere(address):
            return None
        if address not in self._known:
            if len(self._passed) < MOST_KEPT:
                self._passed.add(address)
            return None
        return self._known[address][0]

    def is_unknown(self, address: Address) -> bool:
        """Say whether *address* may be a Service's, and nothing is known of it: then a name that it had may hold."""
        return bool(self._ranges) and address not in self._known and not self._is_elsewhere(address)

    def is_awaited(self, address: Address) -> bool:
        """Say whether its name may come in a moment: who shows it under another one has it twice."""
        now = self._clock()
        if now < self._not_before or not self.is_unknown(address) or len(self._awaited) >= MOST_KEPT:
            return False
        return now - self._awaited.setdefault(address, now) < _AWAITED_SECONDS

    async def learn(self, addresses: Iterable[Address]) -> bool:
        """Ask who *addresses* belong to, those that nothing (or nothing recent) is known of.

        Returns whether somebody was told otherwise before.
        """
        now = self._clock()
        wanted = [address for address in addresses if self._is_wanted(address, now)] if self._ranges else []
        if not wanted or now < self._not_before:
            return False
        learnt = set[Address]()
        try:
            async with asyncio.timeout(LONGEST):
                for address in wanted[:MOST_AT_ONCE]:
                    before = self._known.get(address, (None, 0.0))[0]
                    name = await self._ask(address)
                    self._keep(address, name)
                    if name != before and (before or address in self._passed):
                        learnt.add(address)
                    self._passed.discard(address)
                    self._awaited.pop(address, None)
            self.problem = None
        except TimeoutError:
            self._fail("the API server does not answer in time", _PAUSE_SECONDS)
        except UnavailableError as error:
            self._fail(str(error), max(_PAUSE_SECONDS, error.retry_after or 0.0))
        except DeniedError as error:
            self._fail(f"{error}: the ClusterRole has to allow to get ipaddresses", _DENIED_SECONDS)
        except NodeagentError as error:
            self._fail(str(error), _DENIED_SECONDS)
        return bool(learnt)

    def _is_wanted(self, address: Address, now: float) -> bool:
        known = self._known.get(address)
        return now >= known[1] if known else not self._is_elsewhere(address)

    def _is_elsewhere(self, address: Address) -> bool:
        if address in self._elsewhere:
            return True
        if address in self._known or any(net.version == address.version and address in net for net in self._ranges):
            return False
        if len(self._elsewhere) >= MOST_KEPT:
            self._elsewhere.clear()
        self._elsewhere.add(address)
        return True

    async def _ask(self, address: Address) -> str | None:
        """Return the name; None where the address is nobody's.

        Raises:
            NodeagentError: nobody says.
        """
        try:
            # From the server's cache: that is new enough, and costs etcd nothing.
            answer = await self._client.request("GET", f"{_PATH}{address}", {"resourceVersion": "0"})
            parent = msgspec.json.decode(answer, type=_IPAddress).spec.parent_ref
        except RequestError as error:
            if error.status != HTTPStatus.NOT_FOUND or _NO_SUCH_KIND in str(error):
                raise
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RequestError(f"the API server's answer cannot be read: {printable(str(error))}", 200) from None
        is_service = parent.resource == "services" and all(map(_LABEL_RE.fullmatch, (parent.name, parent.namespace)))
        return f"{parent.name}.{parent.namespace}" if is_service else None

    def _keep(self, address: Address, name: str | None) -> None:
        self._known[address] = name, self._clock() + (_KNOWN_SECONDS if name else _NOBODYS_SECONDS)
        self._known.move_to_end(address)
        while len(self._known) > MOST_KEPT:
            self._known.popitem(last=False)

    def _fail(self, problem: str, seconds: float) -> None:
        self._not_before = self._clock() + seconds
        self._awaited.clear()
        if self.problem is None:
            structlog.get_logger().warning("no names of Services", error=problem, seconds=seconds)
        self.problem = f"Services are called by their addresses: {problem}"
