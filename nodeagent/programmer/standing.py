"""What was found in order, and how the tables were marked then: while the marks stand, nobody need look again."""

from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping
from typing import Final

from nodeagent.model import BackendName
from nodeagent.programmer.backend import Backend
from nodeagent.programmer.seam import Expected

_MOST: Final = 2048

Marks = Mapping[BackendName, Hashable]


class Standing:
    """Remembers marks of *backends*, by the netns' cookie and by what was expected of it.

    Without a cookie (before Linux 5.14) nothing is remembered: another netns might be taken for it.
    Works on the netns that the calling thread is in, like the backends.
    """

    def __init__(self, backends: Collection[Backend]) -> None:
        self._backends = backends
        self._known: OrderedDict[Hashable, Marks] = OrderedDict()

    def stands(self, cookie: int | None, pod: Expected) -> bool:
        """Say whether *pod* was in order once, and nothing was written to its netns since.

        Raises:
            KernelError: a table cannot be read.
        """
        marks = self._known.get(_question(cookie, pod))
        return marks is not None and all(backend.stands(marks[backend.name]) for backend in self._backends)

    def mark(self) -> Marks | None:
        """Return the marks to keep if what is read from now on turns out to be in order; None if one cannot be had.

        Raises:
            KernelError: a table cannot be read.
        """
        marks = {backend.name: backend.mark() for backend in self._backends}
        return None if None in marks.values() else marks

    def keep(self, cookie: int | None, pod: Expected, marks: Marks | None) -> None:
        """Remember that *pod* was in order after *marks* were taken."""
        question = _question(cookie, pod)
        self._known.pop(question, None)
        if cookie is not None and marks is not None:
            self._known[question] = marks
        while len(self._known) > _MOST:
            self._known.popitem(last=False)


def _question(cookie: int | None, pod: Expected) -> Hashable:
    return cookie, pod.ruleset_id, pod.proxy_port, pod.choice
