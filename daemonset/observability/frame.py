"""What all dashboards have: variables, links to each other, and links from a row or curve to its pod or node."""

from collections.abc import Sequence
from typing import Final

from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard

from daemonset.observability.panels import DATASOURCE

_ALL: Final = dashboard.VariableOption(text=["All"], value=["$__all"])
_TAG: Final = "nodeagent"
_KEPT: Final = "${datasource:queryparam}&${cluster:queryparam}"

TO_POD: Final = (
    f"This pod|/d/nodeagent-pod?{_KEPT}&var-namespace=${{__data.fields.Namespace}}&var-pod=${{__data.fields.Pod}}"
    "&${__url_time_range}"
)
"""From a table's row to its pod."""

CURVE_TO_POD: Final = (
    f"This pod|/d/nodeagent-pod?{_KEPT}&var-namespace=${{__field.labels.source_namespace}}"
    "&var-pod=${__field.labels.source_pod}&${__url_time_range}"
)
"""From a curve to its pod."""

CURVE_TO_NODE: Final = (
    f"This node|/d/nodeagent-node?{_KEPT}&var-node=${{__field.labels.instance}}&${{__url_time_range}}"
)
"""From a curve to its node."""

CURVE_TO_NAMESPACE: Final = (
    f"This namespace|/d/nodeagent-fleet?{_KEPT}&var-namespace=${{__field.labels.source_namespace}}"
    "&${__url_time_range}"
)
"""From a curve to its namespace."""

CLUSTER: Final = ("cluster", "Cluster", "label_values(nodeagent_build_info, cluster)")
NODE: Final = ("node", "Node", 'label_values(nodeagent_build_info{cluster=~"$cluster"}, instance)')
_PODS: Final = 'nodeagent_egress_verdict_bytes_total{cluster=~"$cluster"'
NAMESPACE: Final = ("namespace", "Namespace", f"label_values({_PODS}}}, source_namespace)")
NAMESPACE_ON_NODE: Final = (
    "namespace",
    "Namespace",
    f'label_values({_PODS}, instance="$node"}}, source_namespace)',
)
POD: Final = ("pod", "Pod", f'label_values({_PODS}, source_namespace=~"$namespace"}}, source_pod)')

Variable = tuple[str, str, str]


def begin(uid: str, title: str, why: str, *variables: QueryVariable) -> Dashboard:
    """Return a dashboard without panels, with a data source and *variables* to choose."""
    made = (
        Dashboard(title)
        .uid(uid)
        .description(why)
        .tags([_TAG])
        .editable()
        .refresh("1m")
        .time("now-3h", "now")
        .timezone("browser")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .variables([DatasourceVariable("datasource").label("Data source").type("prometheus"), *variables])
    )
    others = DashboardLink("nodeagent").type(dashboard.DashboardLinkType.DASHBOARDS).tags([_TAG])
    return made.link(others.include_vars(include_vars=True).keep_time(keep_time=True).icon("external link"))


def any_of(variable: Variable) -> QueryVariable:
    """Return a choice of several, all of them at first; series without the label belong to all."""
    return _choice(variable).multi(multi=True).include_all(include_all=True).all_value(".*").current(_ALL)


def one_of(variable: Variable) -> QueryVariable:
    """Return a choice of exactly one."""
    return _choice(variable).multi(multi=False).include_all(include_all=False)


def _choice(variable: Variable) -> QueryVariable:
    name, label, query = variable
    return (
        QueryVariable(name)
        .label(label)
        .query({"query": query, "refId": name})
        .datasource(DATASOURCE)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
    )


def add(made: Dashboard, title: str, panels: Sequence[Builder[dashboard.Panel]]) -> Dashboard:
    """Return *made* with a row of this *title* and *panels* below it."""
    made = made.with_row(Row(title))
    for panel in panels:
        made = made.with_panel(panel)
    return made
