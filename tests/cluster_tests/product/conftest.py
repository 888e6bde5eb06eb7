"""One installation for all modules of this folder, the last of which takes it to pieces."""

from collections.abc import Iterator

import pytest

from tests.cluster import Cluster
from tests.cluster.daemon import Daemon
from tests.cluster.foreign import ForeignCluster
from tests.cluster.product import Product


@pytest.fixture(scope="package")
def installed(cluster: Cluster | ForeignCluster) -> Iterator[Product]:
    """Install with Helm, once for all of these tests."""
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
