"""One cluster for all of these tests: ours, or the one that KUBECONFIG names.

NODEAGENT_CLUSTER names the directory of one that runs already (`make cluster`), which saves ten seconds a run.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.daemon import Daemon
from tests.cluster.foreign import ForeignCluster
from tests.cluster.pods import Pods
from tests.cluster.product import Product


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


@pytest.fixture(scope="module")
def installed(cluster: Cluster | ForeignCluster) -> Iterator[Product]:
    """Install with Helm, once for the tests of a module."""
    if isinstance(cluster, ForeignCluster):
        pytest.skip("needs the node itself, which a kubeconfig does not give")
    with Product(cluster) as product:
        product.make_namespace()
        product.install()
        yield product


@pytest.fixture
def product(installed: Product) -> Product:
    """Return what is installed, with a configuration of defaults, whatever the test before has left."""
    installed.configure("")
    return installed


@pytest.fixture
def daemon(installed: Product) -> Daemon:
    """Return the pod of what is installed."""
    return Daemon(installed)
