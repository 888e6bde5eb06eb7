"""One cluster for all of these tests: ours, or the one that KUBECONFIG names.

NODEAGENT_CLUSTER names the directory of one that runs already (`make cluster`), which saves ten seconds a run.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.foreign import ForeignCluster
from tests.cluster.pods import Pods


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster | ForeignCluster]:
    """Bring up, or find, the cluster."""
    if kubeconfig := os.environ.get("KUBECONFIG"):
        with ForeignCluster(kubeconfig) as foreign:
            yield foreign
    elif running := os.environ.get("NODEAGENT_CLUSTER"):
        attached = Cluster(Path(running))
        attached.attach()
        yield attached
    else:
        with Cluster() as own:
            yield own


@pytest.fixture
def node(cluster: Cluster | ForeignCluster) -> Cluster:
    """Return the same cluster, for tests that look at its node from inside, or end its components."""
    if isinstance(cluster, ForeignCluster):
        pytest.skip("needs the node itself, which a kubeconfig does not give")
    return cluster


@pytest.fixture
def pods(cluster: Cluster | ForeignCluster) -> Iterator[Pods]:
    """Make a namespace for the pods of one test."""
    with Pods(cluster) as pods:
        yield pods
