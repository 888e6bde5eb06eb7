"""What is handed to others holds no secret, wherever one stands, and is still of use."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.cli.redact import REDACTED, redact, redact_json, redact_text

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJlLXdpdGgtYnl0ZXM"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nTUlJRXBBSUJBQUtDQVFFQQ==\nc2Vjb25kbGluZQ==\n-----END RSA PRIVATE KEY-----"
PLANTED = "hunter2-Zq9"

SECRETS = {
    "a bearer token in a header": (f"Authorization: Bearer {PLANTED}", "Authorization: "),
    "a header in JSON within JSON": (rf"{{\"Authorization\": \"Bearer {PLANTED}\"}}", "Authorization"),
    "basic credentials": (f"curl -H 'Proxy-Authorization: Basic {PLANTED}Zz=='", "curl"),
    "a bearer token by itself": (f"sent Bearer {PLANTED}{PLANTED} to the server", "to the server"),
    "a token of a service account, anywhere": (f"said {JWT}, and went", ", and went"),
    "a private key": (f"before {PEM} after", " after"),
    "a private key with escaped ends of lines": ("k: " + PEM.replace("\n", "\\n") + " after", " after"),
    "a private key that is cut off": (PEM[:60], ""),
    "the end of a private key": (PEM[35:] + " after", " after"),
    "a password in an address": (f"proxy https://joe:{PLANTED}@proxy.example:3128/x", "@proxy.example:3128/x"),
    "a password in a setting": (f"db_password={PLANTED} host=db", " host=db"),
    "a password in YAML": (f"password: {PLANTED}\nuser: joe", "user: joe"),
    "a password in YAML, with blanks": (f"password: correct {PLANTED}\nuser: joe", "user: joe"),
    "a password in a list of YAML": (f"- db_password: correct {PLANTED}\n- user: joe", "user: joe"),
    "a block of YAML": (f"data:\n  token: |\n    first\n\n      {PLANTED}\n  user: joe", "  user: joe"),
    "a folded block of YAML": (f"clientSecret: >-\n  {PLANTED}", "clientSecret: "),
    "a password in quotes": (f'"dbPassword": "{PLANTED} with blanks", "port": 1', '"port": 1'),
    "a password in a log line of JSON": (f'{{"event": "x", "api_key": "{PLANTED}"}}', '"event": "x"'),
    "a kubeconfig": (f"    client-key-data: {PLANTED}\n    token: {PLANTED}", "client-key-data: "),
    "a key of AWS": ("uses AKIAIOSFODNN7EXAMPLE here", " here"),
    "a token of GitHub": ("uses ghp_abcdefghijklmnopqrstuvwxyz0123456789 here", " here"),
}


def leaks(text: str) -> list[str]:
    """Return what of the planted secrets is in *text*."""
    parts = (PLANTED, JWT, JWT.split(".")[1], "TUlJRXBB", "c2Vjb25k", "AKIAIOSFODNN7EXAMPLE", "ghp_")
    return [part for part in parts if part in text]


@pytest.mark.parametrize(("text", "stays"), SECRETS.values(), ids=SECRETS.keys())
def test_it_takes_out(text: str, stays: str) -> None:
    assert leaks(text)
    said = redact_text(text)
    assert not leaks(said)
    assert REDACTED in said
    assert stays in said


STAYS = (
    'nodeagent_egress_bytes_total{source_namespace="shop",source_pod="secret-web",reason="included"} 4096',
    "pod shop/password-service is in the network namespace of shop/token-issuer",
    "--tokenfile=/var/run/secrets/kubernetes.io/serviceaccount/token",
    "2001:db8::1:443 -> [fd00::1]:15001 https://10.96.0.1:443/api/v1/pods?watch=true",
)


@pytest.mark.parametrize("text", STAYS)
def test_it_leaves_alone(text: str) -> None:
    assert redact_text(text) == text


def test_of_an_environment_only_secrets_go() -> None:
    env = [{"name": "DB_PASSWORD", "value": PLANTED}, {"name": "NODE_NAME", "value": "node-1"}]
    assert redact_json({"env": env})["env"] == [{"name": "DB_PASSWORD", "value": REDACTED}, env[1]]


OBJECTS = {
    "an environment in JSON within JSON, as `kubectl apply` keeps it": {
        "annotations": {"kept": json.dumps({"env": [{"name": "DB_PASSWORD", "value": PLANTED}], "user": "joe"})}
    },
    "an option's value": {"args": ["--user", "joe", "--db-password", PLANTED]},
}


@pytest.mark.parametrize("name", OBJECTS)
def test_of_an_object_it_takes_out(name: str) -> None:
    said = json.dumps(redact_json(OBJECTS[name]))
    assert not leaks(said)
    assert "joe" in said


def test_what_is_too_deep_to_be_read_is_text() -> None:
    deep = "[" * 100_000 + f"password={PLANTED}"
    assert not leaks(redact(deep.encode()).decode())
    assert not leaks(redact(json.dumps({"kept": deep}).encode()).decode())


def test_references_to_secrets_by_name_stay() -> None:
    spec = {"imagePullSecrets": [{"name": "registry"}], "automountServiceAccountToken": False}
    assert redact_json(spec) == spec


names = st.sampled_from(["password", "DB_PASSWD", "apiKey", "client-key-data", "refresh_token", "secret", "x-api-key"])
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20))


def nested(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.lists(children, max_size=3), st.dictionaries(st.text(max_size=8), children, max_size=3))


secrets = names.map(lambda name: {name: PLANTED})


@given(st.recursive(st.one_of(plain, secrets), nested, max_leaves=20))
def test_a_secret_is_found_however_deep_it_lies(value: object) -> None:
    assert PLANTED not in redact(json.dumps(value).encode()).decode()


@given(st.recursive(plain, nested, max_leaves=20), names, st.sampled_from(list(SECRETS.values())))
def test_a_secret_in_a_text_is_found_however_deep_it_lies(value: object, name: str, secret: tuple[str, str]) -> None:
    said = redact(json.dumps({"kept": value, "note": secret[0], name: [PLANTED]}).encode()).decode()
    assert not leaks(said)


@given(st.binary(max_size=300))
def test_any_bytes_become_text(data: bytes) -> None:
    redact(data).decode()


def test_text_that_leads_nowhere_takes_linear_time() -> None:
    for part in (
        "password",
        "token=",
        "://",
        "-----BEGIN PRIVATE KEY-----",
        'secret="\\',
        "eyJabcdefg.",
        "QUJD" * 5 + "\n",
    ):
        redact_text(part * (200_000 // len(part)))
