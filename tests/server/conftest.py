"""A server over a hub without a model, shared by the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .fake import FakeHub
from .running import Running, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(FakeHub()) as each:
        yield each
