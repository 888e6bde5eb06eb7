"""What the agent tells Prometheus.  Pure: a view goes in, text comes out.

Every metric that the agent has is in :mod:`~nodeagent.metrics.series` or
:mod:`~nodeagent.metrics.collector`.
"""

from nodeagent.metrics.exposition import FRESH, Answer, Exposition, render
from nodeagent.metrics.view import DURATIONS, Durations, MapHealth, MetricsView

__all__ = ["DURATIONS", "FRESH", "Answer", "Durations", "Exposition", "MapHealth", "MetricsView", "render"]
