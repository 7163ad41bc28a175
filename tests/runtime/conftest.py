"""A tiny base and a registry of random adapters on it, shared by the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adapterhub import AdapterHub
from adapterhub.base.source import Base
from adapterhub.registry.store import Registry
from tests.server.publishing import make_base, publish


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def registry(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    scratch = tmp_path_factory.mktemp("registry")
    found = Registry(scratch / "registry")
    publish(found, base, "tone", scratch, kind="classification")
    publish(found, base, "topics", scratch, kind="multilabel", seed=3)
    publish(found, base, "writer", scratch, seed=1)
    publish(found, base, "search", scratch, kind="embedding", seed=4)
    return found


@pytest.fixture
def hub(base: Base, registry: Registry) -> Iterator[AdapterHub]:
    with AdapterHub(base, registry) as found:
        yield found
