"""Whose redirect is it?  The names that other proxies give their chains and tables.  Pure.

One table for both backends: a chain means the same whether iptables-legacy, iptables-nft or
nft holds it.  A name that is not here is nobody's; then only the rule itself can tell, by
redirecting to the sidecar's port.
"""

from typing import Final

PREFIXES: Final[dict[str, str]] = {
    "APPMESH_": "AWS App Mesh",
    "CONSUL_": "Consul",
    "ISTIO_": "Istio",
    "KUMA_": "Kuma",
    "MESH_": "Kuma",  # before 2.0
    "OSM_PROXY_": "Open Service Mesh",
    "PROXY_INIT_": "Linkerd",
    "istio-": "Istio",  # its native nftables: tables istio-proxy-nat, …; chains istio-output, …
}
"""The beginning of a chain's or table's name, and the mesh that names things so."""


def other_proxy(name: str) -> str | None:
    """Return the mesh that the chain or table *name* belongs to, or None.

    >>> other_proxy("ISTIO_OUTPUT"), other_proxy("PROXY_INIT_REDIRECT"), other_proxy("OUTPUT")
    ('Istio', 'Linkerd', None)
    """
    return next((mesh for prefix, mesh in PREFIXES.items() if name.startswith(prefix)), None)
