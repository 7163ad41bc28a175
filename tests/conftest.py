"""What holds for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("ADAPTERHUB_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of public data sets; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no data sets at {DATA}; set ADAPTERHUB_DATA")
    return DATA
