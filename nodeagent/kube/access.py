"""Credentials in use: TLS, and a token that is always the present one.

Promises: nothing is written to a disk, private keys included; a token that was changed on disk is
used within a minute, and at once after the server refused the old one.
"""

import asyncio
import os
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from nodeagent.errors import InputError, printable
from nodeagent.kube.credentials import Credentials, Failure

Load: TypeAlias = Callable[[], Awaitable[Credentials]]

_TOKEN_SECONDS: Final = 60.0  # as often as the kubernetes client itself reads it
_CHILD_SECONDS: Final = 60.0
_MODULE: Final = "nodeagent.kube.credentials"


async def load_credentials(kubeconfig: str = "", context: str = "") -> Credentials:
    """Return what *kubeconfig* says; without one, the pod's service account, else the user's own kubeconfig.

    Raises:
        InputError: there are none, and why.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", _MODULE, kubeconfig, context),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out = err = b""
    try:
        out, err = await asyncio.wait_for(child.communicate(), _CHILD_SECONDS)
        found = msgspec.json.decode(out, type=dict[str, msgspec.Raw])
        if "problem" not in found:
            return msgspec.json.decode(out, type=Credentials)
        problem = msgspec.json.decode(out, type=Failure).problem
    except TimeoutError:
        problem = f"no answer after {_CHILD_SECONDS:.0f} s: a command of the kubeconfig may hang"
    except msgspec.MsgspecError:
        problem = err.decode(errors="replace").strip().rpartition("\n")[2] or "no answer"
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    raise InputError(f"no credentials for the API server: {printable(problem, 300)}: give a kubeconfig (--kubeconfig)")


class Access:
    """Credentials, ready to be used; *clock* counts seconds and never goes back."""

    def __init__(self, credentials: Credentials, clock: Callable[[], float] = time.monotonic) -> None:
        self._credentials, self._clock = credentials, clock
        self._authorization, self._read_at = credentials.authorization, clock()
        self.server = credentials.server.rstrip("/")
        self.server_name, self.proxy = credentials.server_name, credentials.proxy
        self.tls = _tls(credentials)

    def headers(self) -> dict[str, str]:
        """Return the headers that say who we are."""
        path = self._credentials.token_file
        if path and self._clock() - self._read_at >= _TOKEN_SECONDS:
            self._read_at = self._clock()
            try:
                token = Path(path).read_text().strip()
            except OSError:
                token = ""  # it is being changed: the one that we have is good for a while
            self._authorization = f"Bearer {token}" if token else self._authorization
        return {"Authorization": self._authorization} if self._authorization else {}


def _tls(credentials: Credentials) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=credentials.authority)
        # Python 3.13 asks of certificates what many clusters' own authorities never wrote into theirs.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not credentials.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if credentials.certificate:
            _load_certificate(context, f"{credentials.certificate}\n{credentials.key or ''}")
    except (ssl.SSLError, ValueError) as error:
        raise InputError(f"the API server's credentials hold a bad certificate or key: {error}") from None
    return context


def _load_certificate(context: ssl.SSLContext, pem: str) -> None:
    """Load certificate and key from memory; Python's ssl takes them from files only."""
    with os.fdopen(os.memfd_create("certificate"), "w") as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
