"""Where the API server is and who we are, found out by the kubernetes client in a short-lived child.

That client knows kubeconfig in all its forms: contexts, embedded certificates, token files, commands that print
credentials.  Importing it costs 19 MB for good (docs/adr/0012), so a child imports it, prints what it found as JSON,
and ends.  In a pod, what it finds is the service account; the token itself is read from its file again and again,
because it is changed every hour.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from kubernetes.client import Configuration

_IN_CLUSTER = "KUBERNETES_SERVICE_HOST"


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What a client needs.

    Certificates are PEM; ``authorization`` is a header's value, and ``token_file`` holds newer tokens.
    """

    server: str
    verify: bool = True
    server_name: str | None = None
    authority: str | None = None
    certificate: str | None = None
    key: str | None = None
    authorization: str | None = None
    token_file: str | None = None
    proxy: str | None = None


class Failure(msgspec.Struct, frozen=True):
    """Why there are none, in words for people."""

    problem: str


def main(kubeconfig: str, context: str) -> None:
    """Print :class:`Credentials` or :class:`Failure` as JSON; empty arguments stand for the defaults."""
    from kubernetes.client import Configuration  # noqa: PLC0415  # its cost belongs to the child alone
    from kubernetes.config import ConfigException, incluster_config, kube_config  # noqa: PLC0415

    found = Configuration()
    token_file = None
    try:
        if _IN_CLUSTER in os.environ and not kubeconfig:
            incluster_config.load_incluster_config(found)
            token_file = incluster_config.SERVICE_TOKEN_FILENAME
        else:
            kube_config.load_kube_config(kubeconfig or None, context or None, found)
        result: Credentials | Failure = _credentials(found, token_file)
    except (ConfigException, OSError, ValueError) as error:
        result = Failure(str(error))
    sys.stdout.buffer.write(msgspec.json.encode(result))


def _credentials(found: "Configuration", token_file: str | None) -> Credentials:
    from kubernetes.client.rest import should_bypass_proxies  # noqa: PLC0415

    return Credentials(
        server=found.host,
        verify=bool(found.verify_ssl),
        server_name=found.tls_server_name,
        authority=_pem(found.ssl_ca_cert),
        certificate=_pem(found.cert_file),
        key=_pem(found.key_file),
        authorization=_authorization(found),
        token_file=token_file,
        proxy=None if should_bypass_proxies(found.host, found.no_proxy or "") else found.proxy,
    )


def _pem(path: str | None) -> str | None:
    """Return the text of a file, which may be a temporary one that goes with this process."""
    return Path(path).read_text() if path else None


def _authorization(found: "Configuration") -> str | None:
    """Return the header's value, whose scheme the client spells in its own way; bare tokens are bearers'."""
    scheme, _, rest = (found.get_api_key_with_prefix("BearerToken") or "").strip().partition(" ")
    if not scheme:
        return None
    return f"{scheme.capitalize()} {rest.strip()}" if rest else f"Bearer {scheme}"


if __name__ == "__main__":
    main(*sys.argv[1:])
