"""One answer to a scrape; many scrapers cost no more than one a second.

Pure: the caller brings the view and the time.
"""

import gzip
from collections.abc import Callable
from typing import Final, NamedTuple

from prometheus_client import generate_latest as generate_text
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from nodeagent.metrics.collector import AgentCollector
from nodeagent.metrics.series import SeriesText
from nodeagent.metrics.text import Format, accepts_gzip, negotiate
from nodeagent.metrics.view import MetricsView

FRESH: Final = 1.0
"""Seconds for which an answer is given again."""

_LEVEL: Final = 1  # half the bytes of none in a quarter of the time of the best


class Answer(NamedTuple):
    """What to send: ``encoding`` is the Content-Encoding, or None."""

    content_type: str
    encoding: str | None
    body: bytes


class Exposition:
    """Answers scrapes from what was rendered within the last second."""

    def __init__(self) -> None:
        self._series = SeriesText()
        self._rendered: dict[tuple[Format, bool], tuple[float, bytes]] = {}

    def answer(self, view: Callable[[], MetricsView], now: float, accept: str = "", encodings: str = "") -> Answer:
        """Return the answer to a request with these *Accept* and *Accept-Encoding* headers.

        *view* is asked only if nothing fresh is there; *now* is seconds of a clock that never jumps.
        """
        style, zipped = negotiate(accept), accepts_gzip(encodings)
        plain = self._remembered(style, now) or self._remember(style, now, self._render(view(), style))
        if not zipped:
            return Answer(style.value, None, plain[1])
        made = self._rendered.get((style, True))
        if made is None or made[0] != plain[0]:
            made = self._rendered[style, True] = plain[0], gzip.compress(plain[1], _LEVEL, mtime=0)
        return Answer(style.value, "gzip", made[1])

    def forget(self, now: float) -> None:
        """Let go of what nobody would be answered with any more: megabytes, with thousands of series."""
        self._rendered = {kind: made for kind, made in self._rendered.items() if now - made[0] < FRESH}

    def _remembered(self, style: Format, now: float) -> tuple[float, bytes] | None:
        made = self._rendered.get((style, False))
        return made if made and 0 <= now - made[0] < FRESH else None

    def _remember(self, style: Format, now: float, body: bytes) -> tuple[float, bytes]:
        made = self._rendered[style, False] = now, body
        return made

    def _render(self, view: MetricsView, style: Format) -> bytes:
        series = "".join(self._series.render(view, style)).encode()
        generate = generate_openmetrics if style is Format.OPENMETRICS else generate_text
        return series + generate(AgentCollector(view))


def render(view: MetricsView, accept: str = "") -> tuple[str, bytes]:
    """Return content type and body for one *view*; :class:`Exposition` is for many scrapes."""
    answer = Exposition().answer(lambda: view, 0, accept)
    return answer.content_type, answer.body
