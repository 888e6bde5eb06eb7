"""The ledger's series, rendered by hand: there are ten thousand of them (docs/adr/0009)."""

from collections.abc import Iterator, Sequence
from typing import Final

from nodeagent.ledger import LEAKS, Account, SeriesValue
from nodeagent.metrics.text import Format, quote
from nodeagent.metrics.view import MetricsView
from nodeagent.model import Counters, Reason, Verdict

_FAMILIES: Final = (
    ("nodeagent_egress_bytes", "bytes", "IP bytes that left a pod, by destination.", False),
    ("nodeagent_egress_connections", "connections", "Connections that a pod began, by destination.", False),
    ("nodeagent_egress_packets", "packets", "Packets that left a pod, by destination.", True),
    ("nodeagent_egress_received_bytes", "received_bytes", "IP bytes that came back to a pod, by destination.", True),
)
"""Metric, field of the counters, help, and whether it is shown in detailed views only."""

_TOTALS: Final = (
    "nodeagent_egress_verdict_bytes",
    "IP bytes that left a pod, by what happened to them and why; not capped.",
)

_KNOWN: Final = (
    (Verdict.INTERCEPTED, Reason.INCLUDED),
    *((Verdict.BYPASSED, reason) for reason in sorted(LEAKS)),
)
"""What every pod's totals begin with at 0, so that the first leak is seen as an increase."""

_LabelKey = tuple[str, str, str, Account]
_VerdictKey = tuple[str, str, Verdict, Reason]


class SeriesText:
    """Renders series; remembers the label texts of the last time."""

    def __init__(self) -> None:
        self._labels: dict[_LabelKey, str] = {}
        self._verdict_labels: dict[_VerdictKey, str] = {}

    def render(self, view: MetricsView, style: Format) -> Iterator[str]:
        """Return the text, family by family."""
        values = self._values(view.series)
        for name, field, text, detail in _FAMILIES:
            if view.detailed or not detail:
                position = Counters._fields.index(field)
                yield _head(name, text, style)
                yield "".join([f"{name}_total{labels} {counters[position]}\n" for labels, counters in values.items()])
        yield _head(*_TOTALS, style)
        yield "".join([f"{_TOTALS[0]}_total{labels} {count}\n" for labels, count in self._verdicts(view).items()])

    def _values(self, series: Sequence[SeriesValue]) -> dict[str, Counters]:
        """Return counters by label text; names that look alike once they are harmless add up."""
        before, now = self._labels, dict[_LabelKey, str]()
        values: dict[str, Counters] = {}
        for namespace, pod, destination, account, counters in series:
            key = namespace, pod, destination, account
            labels = now[key] = before.get(key) or _series_labels(*key)
            if labels in values:
                values[labels] = Counters(*map(sum, zip(values[labels], counters, strict=True)))
            else:
                values[labels] = counters
        self._labels = now
        return values

    def _verdicts(self, view: MetricsView) -> dict[str, int]:
        sums: dict[_VerdictKey, int] = {}
        for pod in view.pods:
            for verdict, reason in _KNOWN:
                sums[pod.namespace, pod.name, verdict, reason] = 0
        for namespace, name, (verdict, reason, _), counters in view.totals:
            key = namespace, name, verdict, reason
            sums[key] = sums.get(key, 0) + counters.bytes
        before = self._verdict_labels
        self._verdict_labels = {key: before.get(key) or _verdict_labels(*key) for key in sums}
        values: dict[str, int] = {}
        for key, count in sums.items():
            labels = self._verdict_labels[key]
            values[labels] = values.get(labels, 0) + count
        return values


def _series_labels(namespace: str, pod: str, destination: str, account: Account) -> str:
    verdict, reason, protocol = account
    return (
        f"{{source_namespace={quote(namespace)},source_pod={quote(pod)},destination={quote(destination)},"
        f'protocol={quote(protocol)},verdict="{verdict.value}",reason="{reason.value}"}}'
    )


def _verdict_labels(namespace: str, pod: str, verdict: Verdict, reason: Reason) -> str:
    where = f"source_namespace={quote(namespace)},source_pod={quote(pod)}"
    return f'{{{where},verdict="{verdict.value}",reason="{reason.value}"}}'


def _head(name: str, text: str, style: Format) -> str:
    family = name if style is Format.OPENMETRICS else f"{name}_total"
    return f"# HELP {family} {text}\n# TYPE {family} counter\n"
