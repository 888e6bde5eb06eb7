"""Grafana panels in this project's own style: units, colours, sizes and links are decided here.

Sizes are in Grafana's grid, 24 wide.  A panel's *why* is the text behind its (i).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeVar

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders.dashboard import DashboardLink, FieldColor, ThresholdsConfig
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as StatPanel
from grafana_foundation_sdk.builders.statetimeline import Panel as TimelinePanel
from grafana_foundation_sdk.builders.table import Panel as TablePanel
from grafana_foundation_sdk.builders.timeseries import Panel as TimeseriesPanel
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE: Final = dashboard.DataSourceRef("prometheus", "${datasource}")

GREEN, RED, ORANGE, BLUE, GREY = "green", "red", "orange", "blue", "#8e8e8e"

_VERDICT_COLORS: Final = {"intercepted": GREEN, "bypassed": ORANGE, "proxy": GREY}

AnyPanel = TypeVar("AnyPanel", StatPanel, TimelinePanel, TablePanel, TimeseriesPanel)


class Unit(StrEnum):
    """Grafana's names of the units that are used here."""

    BYTES = "bytes"
    BYTES_PER_SECOND = "binBps"
    PER_SECOND = "cps"
    SHARE = "percentunit"
    SECONDS = "s"
    COUNT = "short"
    CORES = "none"


@dataclass(frozen=True)
class Query:
    """An expression, and what its series are called: ``{{label}}`` stands for a label's value."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Text:
    """What a panel is called, and why it is there."""

    title: str
    why: str


@dataclass(frozen=True)
class Look:
    """How a panel is shown: *width* of 24, *height*; *limits* colour what reaches them, green below."""

    unit: Unit = Unit.COUNT
    width: int = 12
    height: int = 8
    limits: Mapping[float, str] = field(default_factory=dict)
    link: str | None = None
    is_stacked: bool = False


def stat(text: Text, query: Query, look: Look) -> StatPanel:
    """Return one number, with its course behind it."""
    panel = (
        _common(StatPanel(), text, look)
        .with_target(_range(query))
        .color_mode(common.BigValueColorMode.BACKGROUND if look.limits else common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.AREA)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    return panel.text_mode(common.BigValueTextMode.VALUE_AND_NAME) if query.legend else panel


def graph(text: Text, queries: Sequence[Query], look: Look) -> TimeseriesPanel:
    """Return curves over time."""
    legend = common_builders.VizLegendOptions().show_legend(show_legend=True).placement(common.LegendPlacement.BOTTOM)
    panel = (
        _common(TimeseriesPanel(), text, look)
        .targets([_range(query).ref_id(chr(ord("A") + place)) for place, query in enumerate(queries)])
        .legend(legend.display_mode(common.LegendDisplayMode.LIST).calcs([]))
        .tooltip(
            common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
        .fill_opacity(30 if look.is_stacked else 10)
        .show_points(common.VisibilityMode.NEVER)
        .min(0)
    )
    if look.is_stacked:
        panel = panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    for name, color in _VERDICT_COLORS.items():
        panel = panel.override_by_name(
            name, [dashboard.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color})]
        )
    return panel


def timeline(text: Text, query: Query, look: Look, names: Mapping[str, tuple[str, str]]) -> TimelinePanel:
    """Return a band over time for each series; *names* gives values their text and colour."""
    results = {value: dashboard.ValueMappingResult(name, color) for value, (name, color) in names.items()}
    return (
        _common(TimelinePanel(), text, look)
        .with_target(_range(query))
        .mappings([dashboard.ValueMap(results)] if results else [])
        .show_value(common.VisibilityMode.NEVER)
        .merge_values(merge_values=True)
        .row_height(0.9)
        .fill_opacity(80)
        .line_width(0)
    )


def table(text: Text, query: Query, look: Look, columns: Mapping[str, str]) -> TablePanel:
    """Return a table of what *query* says now; *columns* gives labels, and ``Value``, their titles, in this order."""
    shown = {
        "renameByName": dict(columns),
        "indexByName": {name: place for place, name in enumerate(columns)},
        "includeByName": dict.fromkeys(columns, True),
    }
    return (
        _common(TablePanel(), text, look)
        .with_target(_instant(query))
        .with_transformation(dashboard.DataTransformerConfig("organize", options=shown))
        .sort_by([common_builders.TableSortByFieldState().display_name(columns["Value"]).desc(desc=True)])
        .filterable(filterable=True)
        .no_value("none")
    )


def _common(panel: AnyPanel, text: Text, look: Look) -> AnyPanel:
    steps = [dashboard.Threshold(None, GREEN), *(dashboard.Threshold(at, color) for at, color in look.limits.items())]
    mode = dashboard.FieldColorModeId.THRESHOLDS if look.limits else dashboard.FieldColorModeId.PALETTE_CLASSIC_BY_NAME
    panel = (
        panel.title(text.title)
        .description(text.why)
        .datasource(DATASOURCE)
        .unit(look.unit)
        .span(look.width)
        .height(look.height)
        .thresholds(ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps))
        .color_scheme(FieldColor().mode(mode))
    )
    return panel.data_links([_link(look.link)]) if look.link else panel


def _link(target: str) -> DashboardLink:
    title, _, url = target.partition("|")
    return DashboardLink(title).url(url)


def _range(query: Query) -> Dataquery:
    made = Dataquery().expr(query.expr).range().ref_id("A").datasource(DATASOURCE)
    return made.legend_format(query.legend) if query.legend else made


def _instant(query: Query) -> Dataquery:
    return Dataquery().expr(query.expr).instant().format(PromQueryFormat.TABLE).ref_id("A").datasource(DATASOURCE)
