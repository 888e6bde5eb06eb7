"""The test cluster by hand: `python -m tests.cluster build|helm|up|down|status|run COMMAND...`; and `make`'s.

There is one such cluster for each checkout at a time, in `NODEAGENT_CLUSTER` or below /run, until it is ended.
"""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster.build import BuildError, helm, programs_directory
from tests.cluster.client import Cluster, ClusterError

_CHECKOUT = hashlib.sha256(str(Path(__file__).resolve().parents[2]).encode()).hexdigest()[:8]
DIRECTORY = Path(os.environ.get("NODEAGENT_CLUSTER") or f"/run/nodeagent-cluster-{_CHECKOUT}")


def main() -> int:
    """Do what the command line says; return the exit code."""
    try:
        match sys.argv[1:]:
            case ["build"]:
                print(programs_directory())
            case ["helm"]:
                print(helm())
            case ["up"]:
                _up()
            case ["down"]:
                Cluster(DIRECTORY).close()
            case ["status"]:
                return _run(["kubectl", "get", "nodes,pods", "--all-namespaces", "--output=wide"])
            case ["run", *command] if command:
                return _run(command)
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except (BuildError, ClusterError, OSError, TimeoutError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


def _up() -> None:
    cluster = Cluster(DIRECTORY)
    if DIRECTORY.exists():
        raise ClusterError(
            f"{DIRECTORY} exists: a cluster runs there already, or ended badly; `make cluster-down` first"
        )
    programs_directory()
    began = time.monotonic()
    try:
        cluster.start(owned=False)
        cluster.attach()
    except BaseException:
        cluster.close()
        raise
    print(f"cluster up in {time.monotonic() - began:.1f} s, in {DIRECTORY}")
    print("on its node:  make cluster-run RUN='kubectl get pods -A'    (or RUN=bash)\nat its end:   make cluster-down")


def _run(command: list[str]) -> int:
    """Run *command* on the node, with this terminal."""
    cluster = Cluster(DIRECTORY)
    cluster.attach()
    words = [*cluster.enter, *command]
    return subprocess.run(words, env={**os.environ, **cluster.environment}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
