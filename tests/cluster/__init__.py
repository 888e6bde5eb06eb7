"""A real single-node Kubernetes cluster for tests: `with Cluster() as cluster: cluster.kubectl("get", "nodes")`.

kube-apiserver, controller manager, scheduler, kubelet, etcd, containerd, runc and CNI, as their projects release them,
on a node that is a set of namespaces: processes, mounts, network and cgroups of its own, and no way out.
"""

from tests.cluster.api import Api, ApiError, Object
from tests.cluster.client import Cluster, ClusterError

__all__ = ["Api", "ApiError", "Cluster", "ClusterError", "Object"]
