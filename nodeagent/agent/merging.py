"""One pod of a cluster, as the API server and the container runtime describe it.  Pure.

Whoever speaks first is enough to go by; the other adds to it, and undoes nothing:

| of a pod | the API server, once it has spoken | the container runtime |
|---|---|---|
| whether it is there | while either names it | while either names it |
| annotations, labels | always: people edit them there | until then: as they were when the sandbox was made |
| containers of the specification | all of them, before they start | until then: those that have been started |
| addresses | where the runtime gives none, or is not heard | the sandbox's own: nobody knows them earlier |
| IDs of containers | what it knows | what it knows as well |
| the sandbox's process | never | always |
| the kubelet's own name of it | a static pod's hash is not its UID | always |
"""

from dataclasses import replace

from nodeagent.model import PodKey, PodManifest


def kubelets_key(key: PodKey, manifest: PodManifest) -> PodKey:
    """Return the pod's key as the kubelet names the pod, in cgroups and to the runtime: the same for both sources."""
    return key._replace(uid=manifest.config_hash) if manifest.config_hash else key


def merge(api: PodManifest, runtime: PodManifest, *, is_current: bool) -> PodManifest:
    """Return what both know of one pod; *is_current* says that the runtime is still being heard.

    >>> from ipaddress import ip_address
    >>> old, new = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    >>> merge(PodManifest("a", pod_ips=(old,)), PodManifest("a", pod_ips=(new,)), is_current=True).pod_ips == (new,)
    True
    """
    first, second = (runtime, api) if is_current else (api, runtime)
    return replace(
        api,
        pod_ips=first.pod_ips or second.pod_ips,
        containers={**runtime.containers, **api.containers},
        process=runtime.process,
    )
