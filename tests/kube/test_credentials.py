"""Who we are to the API server: whatever a kubeconfig or a pod says, and tokens that change."""

import asyncio
import json
import ssl
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kubernetes.config import incluster_config

from nodeagent.errors import InputError
from nodeagent.kube import credentials
from nodeagent.kube.access import Access, load_credentials
from nodeagent.kube.client import Client
from nodeagent.kube.credentials import Credentials
from tests.kube.fake import serving
from tests.kube.scene import run, until, watching

SERVER = "https://10.0.0.1:6443"


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Make a certificate and its key."""
    here = tmp_path_factory.mktemp("pem")
    key, certificate = here / "key", here / "crt"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=agent")
    command = ["openssl", "req", "-x509", *curve, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate.read_text(), key.read_text()


def load(directory: Path, user: dict[str, Any], **cluster: Any) -> Credentials:  # noqa: ANN401  # JSON
    path = directory / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": SERVER, **cluster}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(config))
    return asyncio.run(load_credentials(str(path)))


def test_a_token(tmp_path: Path) -> None:
    found = load(tmp_path, {"token": "abc"}, **{"insecure-skip-tls-verify": True})
    assert found == Credentials(server=SERVER, verify=False, authorization="Bearer abc")


def test_a_token_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    assert load(tmp_path, {"tokenFile": "token"}).authorization == "Bearer abc"


def test_a_name_and_a_password(tmp_path: Path) -> None:
    assert load(tmp_path, {"username": "a", "password": "b"}).authorization == "Basic YTpi"


def test_a_command_that_prints_a_token(tmp_path: Path) -> None:
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "abc"}}
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": "echo", "args": [json.dumps(answer)]}
    assert load(tmp_path, {"exec": {**command, "interactiveMode": "Never"}}).authorization == "Bearer abc"


def test_certificates_in_files_and_embedded(tmp_path: Path, pem: tuple[str, str]) -> None:
    certificate, key = pem
    (tmp_path / "crt").write_text(certificate)
    (tmp_path / "key").write_text(key)
    files = {"client-certificate": "crt", "client-key": "key"}
    found = load(tmp_path, files, **{"certificate-authority": "crt", "tls-server-name": "kubernetes"})
    assert (found.authority, found.certificate, found.key) == (certificate, certificate, key)
    assert found.server_name == "kubernetes"
    assert Access(found).tls.verify_mode is ssl.CERT_REQUIRED


def test_a_certificate_that_is_none_says_so() -> None:
    with pytest.raises(InputError, match="bad certificate or key"):
        Access(Credentials(server=SERVER, certificate="x", key="y"))


def test_a_kubeconfig_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no credentials for the API server: .*give a kubeconfig"):
        asyncio.run(load_credentials(str(tmp_path / "none")))


def test_a_pods_service_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], pem: tuple[str, str]
) -> None:
    token, authority = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("abc")
    authority.write_text(pem[0])
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    credentials.main("", "")
    found = msgspec.json.decode(capfdbinary.readouterr().out, type=Credentials)
    assert (found.server, found.authorization) == ("https://[fd00::1]:443", "Bearer abc")
    assert (found.authority, found.token_file) == (pem[0], str(token))


def test_a_token_that_was_changed_is_used_within_a_minute(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("new\n")
    now = 0.0
    found = Credentials(server=SERVER, authorization="Bearer old", token_file=str(token))
    access = Access(found, lambda: now)
    assert access.headers() == {"Authorization": "Bearer old"}
    now = 61.0
    assert access.headers() == {"Authorization": "Bearer new"}
    token.unlink()
    now = 122.0
    assert access.headers() == {"Authorization": "Bearer new"}


def test_a_refused_token_is_asked_for_anew() -> None:
    async def scene() -> None:
        loads = []

        async with serving() as server:

            async def fresh() -> Credentials:
                loads.append(server.url)
                return Credentials(server=server.url, authorization=f"Bearer {len(loads)}")

            server.faults.refusals, server.faults.status = 1, 401
            async with Client(fresh) as client, watching(client) as watch:
                await until(lambda: watch.snapshot is not None)
            assert len(loads) == 2

    run(scene)
