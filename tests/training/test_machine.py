from __future__ import annotations

import resource
import sys
from collections.abc import Iterator

import pytest
import torch

from adapterhub.training.machine import fit_threads, peak_memory_bytes


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_are_cut_to_the_cores_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0}, raising=False)
    torch.set_num_threads(2)
    fit_threads({})
    assert torch.get_num_threads() == 1


def test_fewer_threads_than_cores_and_a_users_choice_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    torch.set_num_threads(2)
    fit_threads({})
    assert torch.get_num_threads() == 2
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0}, raising=False)
    fit_threads({"OMP_NUM_THREADS": "2"})
    assert torch.get_num_threads() == 2


def test_peak_memory_is_in_bytes() -> None:
    # A Python with torch in it holds at least 50 MB and less than the kilobyte reading taken for bytes would give.
    peak = peak_memory_bytes()
    raw = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak >= 50_000_000
    assert peak <= (raw if sys.platform == "darwin" else raw * 1024)
