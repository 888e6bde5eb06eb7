"""One control plane for all tests of a session."""

from collections.abc import Iterator

import pytest

from tests.kube.control_plane import ControlPlane


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """Bring up a real API server."""
    with ControlPlane() as control_plane:
        yield control_plane
