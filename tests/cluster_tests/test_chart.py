"""The chart and the plain manifests, before a real API server."""

from pathlib import Path

import pytest

from daemonset.packaging.manifests import HOME, render
from tests.cluster.build import helm
from tests.cluster.pods import Kubernetes, Pods

pytestmark = pytest.mark.cluster

CREATED = " created (server dry run)"
SWITCHES = {
    "as it comes": (),
    "every switch that needs no operator": (
        "--set=monitoring.dashboards.enabled=true",
        "--set=networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring",
        "--set=networkPolicy.apiServer={10.0.0.1/32}",
        "--set=imagePullSecrets[0].name=registry",
        "--set=programmer.seLinuxOptions.type=spc_t",
        "--set=updateStrategy.maxUnavailable=3",
    ),
    "uninstalling": ("--set=uninstall.enabled=true",),
}


def dry_run(cluster: Kubernetes, manifest: str, *options: str) -> list[str]:
    """Return what the API server, asked to be strict, says of each object; ClusterError if it refuses one."""
    command = ("apply", "--dry-run=server", "--validate=strict", "--filename=-", *options)
    return cluster.kubectl(*command, stdin=manifest).splitlines()


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES.keys())
def test_the_api_server_takes_the_chart(pods: Pods, switches: tuple[str, ...]) -> None:
    rendered = render(helm(), *switches).replace("namespace: nodeagent", f"namespace: {pods.namespace}")
    said = dry_run(pods.cluster, rendered)
    assert said
    assert all(line.endswith(CREATED) for line in said), said


@pytest.mark.parametrize("manifest", sorted(HOME.iterdir()), ids=lambda path: path.name)
def test_the_api_server_takes_the_plain_manifests(pods: Pods, manifest: Path) -> None:
    """In a namespace that is there: a dry run makes none for what comes later in the same file."""
    text = manifest.read_text().replace("namespace: nodeagent", f"namespace: {pods.namespace}")
    said = dry_run(pods.cluster, text)
    assert said
    assert all(line.endswith(CREATED) for line in said), said
