"""What holds for all tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def trunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept trunks, the test's own; compiled kernels stay where they are."""
    monkeypatch.setattr("adapterhub.training.train.cache_root", lambda: tmp_path / "kept")
    return tmp_path / "kept" / "trunks"


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the packed decoder compute in float64."""
    import torch

    monkeypatch.setattr("adapterhub.training.packed.network.compute_dtype", lambda precision, device: torch.float64)
