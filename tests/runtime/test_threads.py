"""How many threads compute: asked for, or measured within what the process may use."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adapterhub.native import threads
from adapterhub.native.threads import (
    candidates,
    choose_threads,
    cpu_quota,
    measure,
    pick,
    usable_cores,
)
from adapterhub.runtime.threads import decode_chain


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three usable cores, whatever this machine has."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: usable_cores(tmp_path, tmp_path / "none"))


@given(st.integers(1, 300))
def test_no_more_threads_than_cores_are_tried_and_one_is_left_for_http(cores: int) -> None:
    tried = candidates(cores)
    assert tried == sorted(set(tried))
    assert tried[0] == 1
    assert tried[-1] == (cores if cores <= 2 else cores - 1)


def test_the_fewest_threads_that_are_about_as_fast_are_taken() -> None:
    assert pick({1: 1.0, 2: 0.95}) == 1
    assert pick({1: 1.0, 2: 0.6}) == 2
    assert pick({1: 1.0, 2: 6.0}) == 1
    assert pick({1: 4.0, 2: 2.0, 4: 1.05, 7: 1.0}) == 4
    assert pick({1: 3.0}) == 1


def put(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(text)


def test_the_least_quota_above_the_process_counts(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    assert cpu_quota(root, own) is None
    own.write_text("12:cpu:/old\n0::/system.slice/some.service\n")
    put(root / "system.slice" / "some.service", "max 100000\n")
    assert cpu_quota(root, own) is None
    put(root / "system.slice", "350000 100000\n")
    assert cpu_quota(root, own) == 3.5
    put(root / "system.slice" / "some.service", "150000 100000\n")
    assert cpu_quota(root, own) == 1.5
    own.write_text("0::/a/path/of/the/host\n")
    assert cpu_quota(root, own) is None
    put(root, "50000 100000\n")
    assert cpu_quota(root, own) == 0.5
    assert usable_cores(root, own) == 1
    put(root, "damaged")
    assert cpu_quota(root, own) is None
    put(tmp_path, "10000 100000\n")  # outside of the tree: not ours
    assert cpu_quota(root, own) is None


def test_the_quota_bounds_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    root, own = tmp_path / "cgroup", tmp_path / "own"
    assert usable_cores(root, own) == 8
    own.write_text("0::/\n")
    put(root, "350000 100000\n")
    assert usable_cores(root, own) == 3
    put(root, "9900000 100000\n")
    assert usable_cores(root, own) == 8


@pytest.mark.usefixtures("cores")
def chain() -> Callable[[], Tensor]:
    """Work to choose threads for."""
    return decode_chain(32, torch.float32)


def test_what_is_asked_for_is_taken_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "measure", None)  # calling it would fail
    assert choose_threads(5, chain).count == 5
    for said, count in (("2", 2), ("3,1", 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        choice = choose_threads(None, chain)
        assert (choice.count, choice.reason) == (count, "OMP_NUM_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    assert choose_threads(None, chain, "meta").count == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4}, raising=False)
    assert choose_threads(None, chain).count == 1


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize(("hidden_size", "dtype"), [(32, torch.float32), (64, torch.bfloat16), (33, torch.float64)])
def test_measuring_decides_and_leaves_torch_as_it_was(hidden_size: int, dtype: torch.dtype) -> None:
    before, others = torch.get_num_threads(), threading.active_count()
    choice = choose_threads(None, lambda: decode_chain(hidden_size, dtype))
    assert choice.count in (1, 2)
    assert "3 usable cores" in choice.reason
    assert "with 1" in choice.reason
    assert "with 2" in choice.reason
    assert torch.get_num_threads() == before
    assert threading.active_count() == others


def test_the_work_runs_with_each_number_of_threads() -> None:
    before, seen = torch.get_num_threads(), set()
    took = measure([1, 2], lambda: lambda: seen.add(torch.get_num_threads()))
    assert seen == {1, 2}
    assert took.keys() == {1, 2}
    assert all(seconds >= 0 for seconds in took.values())
    assert torch.get_num_threads() == before


def test_the_chain_is_as_wide_as_the_base_and_finite() -> None:
    for width in (32, 576):
        rows = decode_chain(width, torch.float32)()
        assert rows.shape[1] == width
        assert bool(torch.isfinite(rows).all())
