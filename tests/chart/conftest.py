"""Helm, and what it makes of the chart."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

from daemonset.packaging.manifests import render
from tests.cluster.build import helm as build_helm

Objects: TypeAlias = Mapping[tuple[str, str], dict[str, Any]]
Render: TypeAlias = Callable[..., Objects]


@pytest.fixture(scope="session")
def helm() -> Path:
    return build_helm()


@pytest.fixture(scope="session")
def rendered(helm: Path) -> Render:
    """Return what renders the chart, with ``--set`` switches, into objects by kind and name."""

    def call(*switches: str) -> Objects:
        documents = yaml.safe_load_all(render(helm, *(f"--set={switch}" for switch in switches)))
        return {(found["kind"], found["metadata"]["name"]): found for found in documents if found}

    return call
