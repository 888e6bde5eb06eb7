"""A cluster that a kubeconfig names: no node of ours, so no way to look behind the API."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from tests.cluster.api import Api
from tests.cluster.client import ClusterError
from tests.cluster.images import BASE_IMAGE

_PATIENCE = 30.0


class ForeignCluster:
    """The cluster of *kubeconfig*, by the kubectl that is along PATH."""

    def __init__(self, kubeconfig: str) -> None:
        if not shutil.which("kubectl"):
            raise ClusterError("a cluster that KUBECONFIG names needs kubectl: install it, or unset KUBECONFIG")
        self.image = os.environ.get("NODEAGENT_E2E_IMAGE") or BASE_IMAGE
        """An image with a shell and Python that this cluster's nodes can get."""
        self._environment = {**os.environ, "KUBECONFIG": kubeconfig}
        self._directory = Path(tempfile.mkdtemp(prefix="nodeagent-api-"))
        self.api = Api(self._directory / "api")
        command = ["kubectl", "proxy", f"--unix-socket={self._directory / 'api'}"]
        self._proxy = subprocess.Popen(command, env=self._environment, stdout=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        deadline = time.monotonic() + _PATIENCE
        while not (self._directory / "api").exists():
            if self._proxy.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise ClusterError("kubectl proxy does not serve: see its message above")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the proxy; the cluster stays as it is."""
        self._proxy.terminate()
        self._proxy.wait(_PATIENCE)
        shutil.rmtree(self._directory, ignore_errors=True)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl; return what it printed; ClusterError if it failed."""
        done = subprocess.run(
            ["kubectl", *arguments], input=stdin, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout
