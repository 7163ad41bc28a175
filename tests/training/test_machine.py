from __future__ import annotations

import resource
import sys
from collections.abc import Iterator

import pytest
import torch

from adapterhub.training.machine import fit_threads, peak_memory_bytes, step_chain

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _threads_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_are_no_more_than_the_cores_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0}, raising=False)
    torch.set_num_threads(2)
    assert fit_threads(32, torch.float32, CPU) == "one core is usable"
    assert torch.get_num_threads() == 1


def test_of_several_the_fastest_number_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub.native.threads.usable_cores", lambda: 2)
    for took, count in (({1: 2.0, 2: 1.0}, 2), ({1: 1.0, 2: 9.0}, 1)):
        monkeypatch.setattr("adapterhub.native.threads.measure", lambda counts, make, took=took: took)
        assert "measured" in fit_threads(32, torch.float32, CPU)
        assert torch.get_num_threads() == count


def test_a_users_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    fit_threads(32, torch.float32, CPU)
    assert torch.get_num_threads() == 2


def test_what_is_timed_is_finite_in_every_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert bool(torch.isfinite(step_chain(64, dtype)()).all())


def test_peak_memory_is_in_bytes() -> None:
    # A Python with torch in it holds at least 50 MB and less than the kilobyte reading taken for bytes would give.
    peak = peak_memory_bytes()
    raw = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak >= 50_000_000
    assert peak <= (raw if sys.platform == "darwin" else raw * 1024)
