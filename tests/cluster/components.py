"""The components of the node: how each is called, how it is configured, and how one knows that it serves."""

import json
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.directory import API
from tests.cluster.surroundings import (
    API_PORT,
    DNS_SERVICE,
    HOST,
    NODE_NAME,
    NODE_V4,
    NODE_V6,
    POD_RANGES,
    PROGRAMS,
    SERVICE_RANGES,
    STATE,
)

PKI = STATE / "pki"
PAUSE_IMAGE = "localhost/pause:local"
CONTAINERD_SOCKET, NRI_SOCKET = "/run/containerd/containerd.sock", "/run/nri/nri.sock"
STATIC_PODS = "/etc/kubernetes/manifests"
_CNI = STATE / "cni"
"""Not in /etc, where the machine may have networks of its own."""


@dataclass(frozen=True, slots=True)
class Component:
    """One long-running program of the node."""

    name: str
    command: tuple[str, ...]
    health: str
    """Answers when the program serves: a URL, or the path of a socket."""
    environment: Mapping[str, str] = field(default_factory=dict)


def components() -> dict[str, Component]:
    """Return the components by name, in the order in which they are started."""
    every = (_etcd(), _containerd(), _api_server(), _controller_manager(), _scheduler(), _kubelet(), _api_socket())
    return {component.name: component for component in every}


def write_configurations() -> None:
    """Write what the components read from files; the certificates are there already."""
    (STATE / "kubelet.json").write_text(json.dumps(_kubelet_configuration(), indent=1))
    (STATE / "containerd.toml").write_text(_CONTAINERD)
    (STATE / "audit.json").write_text(json.dumps(_AUDIT))
    (STATE / "resolv.conf").touch()
    for directory in (_CNI, Path(STATIC_PODS)):
        directory.mkdir(parents=True, exist_ok=True)
        for strangers in directory.iterdir():  # the machine's own tools may have networks; these are the node's
            strangers.unlink()
    (_CNI / "10-bridge.conflist").write_text(json.dumps(_NETWORK, indent=1))


def _program(name: str, *arguments: str, health: str, **flags: object) -> Component:
    spelled = (f"--{flag.replace('_', '-')}={value}" for flag, value in flags.items())
    return Component(name, (str(PROGRAMS / name), *arguments, *spelled), health)


def _etcd() -> Component:
    url = "http://127.0.0.1:2379"
    return _program(
        "etcd",
        health=f"{url}/health",
        data_dir=STATE / "etcd",
        listen_client_urls=url,
        advertise_client_urls=url,
        listen_peer_urls="http://127.0.0.1:2380",
        unsafe_no_fsync="true",  # its disk is memory
        log_level="warn",
    )


def _api_server() -> Component:
    return _program(
        "kube-apiserver",
        health=f"https://{NODE_V4}:{API_PORT}/readyz",
        etcd_servers="http://127.0.0.1:2379",
        bind_address="0.0.0.0",
        advertise_address=NODE_V4,
        secure_port=API_PORT,
        service_cluster_ip_range=",".join(SERVICE_RANGES),
        authorization_mode="Node,RBAC",
        enable_admission_plugins="NodeRestriction",
        client_ca_file=PKI / "ca.crt",
        tls_cert_file=PKI / "apiserver.crt",
        tls_private_key_file=PKI / "apiserver.key",
        kubelet_client_certificate=PKI / "apiserver-to-kubelet.crt",
        kubelet_client_key=PKI / "apiserver-to-kubelet.key",
        kubelet_certificate_authority=PKI / "ca.crt",
        kubelet_preferred_address_types="InternalIP",
        service_account_issuer="https://kubernetes.default.svc",
        service_account_signing_key_file=PKI / "accounts.key",
        service_account_key_file=PKI / "accounts.pub",
        allow_privileged="true",
        shutdown_watch_termination_grace_period="1s",  # else a watch holds up its end for a minute
        audit_policy_file=STATE / "audit.json",
        audit_log_path=HOST / "logs" / "audit.log",
    )


def _controller_manager() -> Component:
    return _program(
        "kube-controller-manager",
        health="https://127.0.0.1:10257/healthz",
        kubeconfig=PKI / "controller-manager.kubeconfig",
        bind_address="127.0.0.1",
        leader_elect="false",
        use_service_account_credentials="true",
        service_account_private_key_file=PKI / "accounts.key",
        root_ca_file=PKI / "ca.crt",
        service_cluster_ip_range=",".join(SERVICE_RANGES),
    )


def _scheduler() -> Component:
    return _program(
        "kube-scheduler",
        health="https://127.0.0.1:10259/healthz",
        kubeconfig=PKI / "scheduler.kubeconfig",
        bind_address="127.0.0.1",
        leader_elect="false",
    )


def _kubelet() -> Component:
    return _program(
        "kubelet",
        health="http://127.0.0.1:10248/healthz",
        config=STATE / "kubelet.json",
        kubeconfig=PKI / "kubelet.kubeconfig",
        hostname_override=NODE_NAME,
        node_ip=f"{NODE_V4},{NODE_V6}",
    )


def _containerd() -> Component:
    # containerd looks for its shim, and the shim for runc, along PATH.
    path = {"PATH": f"{PROGRAMS}:/usr/sbin:/usr/bin:/sbin:/bin"}
    command = (str(PROGRAMS / "containerd"), "--config", str(STATE / "containerd.toml"))
    return Component("containerd", command, CONTAINERD_SOCKET, path)


def _api_socket() -> Component:
    """Return the way in for the tests, which live outside: kubectl's proxy at a socket in the shared directory."""
    path, kubeconfig = str(HOST / API), str(PKI / "admin.kubeconfig")
    command = (str(PROGRAMS / "kubectl"), "proxy", f"--kubeconfig={kubeconfig}", f"--unix-socket={path}")
    return Component("api-socket", command, path)


def _kubelet_configuration() -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(PKI / "ca.crt")}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(PKI / "kubelet-server.crt"),
        "tlsPrivateKeyFile": str(PKI / "kubelet-server.key"),
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE],
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,  # hybrid machines: version 1 for limits, version 2 beside it
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "failSwapOn": False,
        "fileCheckFrequency": "1s",  # of static pods; twenty, else
        "maxOpenFiles": resource.getrlimit(resource.RLIMIT_NOFILE)[1],  # without CAP_SYS_RESOURCE there are no more
        "maxPods": 200,
        "registryPullQPS": 0,
        "resolvConf": str(STATE / "resolv.conf"),
        "staticPodPath": STATIC_PODS,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        # All of its storage is memory: percentages of it say nothing.
        "evictionHard": {"memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
    }


_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}

_NETWORK = {
    "cniVersion": "1.0.0",
    "name": "cluster",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isDefaultGateway": True,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": one}] for one in POD_RANGES]},
        }
    ],
}

# restrict_oom_score_adj: without CAP_SYS_RESOURCE a score cannot be lowered.
_CONTAINERD = f"""\
version = 3
root = "{STATE}/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{STATE}/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = false
  socket_path = "{NRI_SOCKET}"
[plugins."io.containerd.nri.v1.nri".default_validator]
  enable = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{PROGRAMS}"]
    conf_dir = "{_CNI}"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""
