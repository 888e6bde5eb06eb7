"""The certificates of a cluster: one authority, one certificate for each component, kubeconfigs.  Valid for a week."""

import base64
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.surroundings import API_PORT, API_SERVICE, NODE_NAME, NODE_V4

_DAYS = "7"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_API_NAMES = (
    *("DNS:kubernetes", "DNS:kubernetes.default", "DNS:kubernetes.default.svc", "DNS:localhost"),
    *(f"IP:{API_SERVICE}", f"IP:{NODE_V4}", "IP:127.0.0.1"),
)

# Who they are to Kubernetes' own RBAC roles: name, and groups.
_CLIENTS = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "kubelet": (f"system:node:{NODE_NAME}", "system:nodes"),
    "apiserver-to-kubelet": ("apiserver-to-kubelet", "system:masters"),
}


def make_certificates(directory: Path) -> None:
    """Fill *directory*: `ca.crt`; `NAME.crt` and `NAME.key` for each component; `NAME.kubeconfig` for each client."""
    directory.mkdir(mode=0o700)
    _openssl(directory, "req", "-x509", *_KEY, *_files("ca"), "-days", _DAYS, "-subj", "/CN=cluster")
    _issue(directory, "apiserver", "/CN=kube-apiserver", f"subjectAltName={','.join(_API_NAMES)}")
    _issue(directory, "kubelet-server", f"/CN={NODE_NAME}", f"subjectAltName=DNS:{NODE_NAME},IP:{NODE_V4}")
    for name, (user, group) in _CLIENTS.items():
        _issue(directory, name, f"/O={group}/CN={user}" if group else f"/CN={user}", "extendedKeyUsage=clientAuth")
        (directory / f"{name}.kubeconfig").write_text(json.dumps(_kubeconfig(directory, name), indent=1))
    # What service accounts' tokens are signed with.
    _openssl(directory, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "accounts.key")
    _openssl(directory, "pkey", "-in", "accounts.key", "-pubout", "-out", "accounts.pub")


def _files(name: str) -> Sequence[str]:
    return ("-keyout", f"{name}.key", "-out", f"{name}.crt")


def _issue(directory: Path, name: str, subject: str, extension: str) -> None:
    by = ("-CA", "ca.crt", "-CAkey", "ca.key", "-days", _DAYS)
    leaf = ("-addext", "basicConstraints=critical,CA:FALSE", "-addext", extension)
    _openssl(directory, "req", "-x509", *_KEY, *_files(name), *by, "-subj", subject, *leaf)


def _openssl(directory: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"openssl {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")


def _kubeconfig(directory: Path, name: str) -> dict[str, object]:
    def data(file: str) -> str:
        return base64.b64encode((directory / file).read_bytes()).decode()

    cluster = {"server": f"https://{NODE_V4}:{API_PORT}", "certificate-authority-data": data("ca.crt")}
    user = {"client-certificate-data": data(f"{name}.crt"), "client-key-data": data(f"{name}.key")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": name}}],
        "current-context": "cluster",
    }
