"""The directory that a cluster shares with the machine: what is in it, and how it and the cluster end."""

import shutil
import socket
from contextlib import suppress
from pathlib import Path

from tests.cluster import cgroups

KEEPER = "keeper"
"""The socket at which the keeper waits to be told to end the cluster."""
NODE = "node"
"""The socket at which the node answers questions about itself."""
API = "api"
"""The socket at which the API answers as its administrator, without a certificate."""
KUBECONFIG = "kubeconfig"
LOGS = "logs"
NODE_PID = "pid"
"""Holds the id of the node's process 1, out here."""
CGROUPS = "cgroups"
"""Lists the cluster's directory in each cgroup hierarchy."""
HANDED_ON = "handed-on"
"""Lists the controllers that the machine's root cgroups hand on for the cluster's sake alone."""


def end(directory: Path, patience: float) -> bool:
    """Ask the keeper of *directory* to end its cluster, and wait until nothing is left; False if there is no keeper."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(patience)
        try:
            sock.connect(str(directory / KEEPER))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        with suppress(ConnectionResetError):
            sock.recv(1)
    return True


def sweep(directory: Path) -> None:
    """Remove the cgroups and files of a cluster whose processes have gone."""
    recorded = directory / CGROUPS
    if recorded.exists():
        cgroups.remove(map(Path, recorded.read_text().splitlines()))
    if (directory / HANDED_ON).exists():
        for root, *controllers in map(str.split, (directory / HANDED_ON).read_text().splitlines()):
            with suppress(OSError):  # somebody else has come to use them
                cgroups.hand_on(Path(root), "-", controllers)
    shutil.rmtree(directory, ignore_errors=True)
