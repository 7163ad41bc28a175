"""Features on disk: the same as computed anew, computed once, and whole whatever stopped the program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from adapterhub.base import vector_store
from adapterhub.base.feature_store import feature_store, stored_features
from adapterhub.base.features import features
from adapterhub.base.source import Base, open_base
from adapterhub.base.vector_store import VectorStore
from adapterhub.errors import AdapterHubError, BaseError, InvalidRequest
from tests.tiny import make_tiny_base

TEXTS = ["one", "a much longer text about two things", "x", "one", "ünïcödé \U0001f642"]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Base:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    return open_base(str(make_tiny_base(tmp_path / "tiny")))


def folder(base: Base) -> Path:
    return feature_store(base, "mean", torch.float32).folder


def test_they_are_what_the_base_says_and_computed_once(base: Base) -> None:
    found = stored_features(base, iter(TEXTS))
    np.testing.assert_allclose(found, features(base, TEXTS).numpy(), atol=1e-5)
    assert (folder(base) / "keys").stat().st_size == 16 * len({*TEXTS})
    (base.path / "model.safetensors").unlink()
    assert np.array_equal(stored_features(base, TEXTS[::-1]), found[::-1])
    with pytest.raises(BaseError):
        stored_features(base, ["not seen before"])


def test_chunks_and_progress(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_store, "CHUNK", 2)
    monkeypatch.setattr(vector_store, "_IN_MEMORY", 0)
    heard: list[int] = []
    found = stored_features(base, TEXTS, progress=heard.append)
    assert heard == [2, 4, 5]
    assert isinstance(found, np.memmap)
    np.testing.assert_allclose(found, features(base, TEXTS).numpy(), atol=1e-5)
    # The mapping's file has no name: nothing of it is left in the cache.
    assert sorted(each.name for each in folder(base).iterdir()) == ["features", "keys", "locks"]


def test_poolings_and_dtypes_are_apart(base: Base) -> None:
    mean, last = stored_features(base, TEXTS, "mean"), stored_features(base, TEXTS, "last")
    assert not np.allclose(mean, last, atol=1e-2)
    np.testing.assert_allclose(last, features(base, TEXTS, "last").numpy(), atol=1e-5)
    low = stored_features(base, TEXTS, "mean", dtype=torch.bfloat16)
    assert low.dtype == np.float32
    assert not np.array_equal(low, mean)


def test_no_texts(base: Base) -> None:
    assert stored_features(base, []).shape == (0, 32)


@pytest.mark.parametrize("cut", [1, 16, 17, 40])
def test_what_was_half_written_is_computed_again(base: Base, cut: int) -> None:
    found = stored_features(base, TEXTS)
    keys, vectors = folder(base) / "keys", folder(base) / "features"
    os.truncate(keys, keys.stat().st_size - cut)
    with vectors.open("ab") as file:
        file.write(b"half a vector")
    assert np.allclose(stored_features(base, TEXTS), found, atol=1e-5)
    os.truncate(vectors, 32 * 4 + 5)  # fewer vectors than keys: as many texts are known as have both
    assert np.allclose(stored_features(base, TEXTS), found, atol=1e-5)
    assert keys.stat().st_size == 16 * len({*TEXTS})


def test_keys_that_begin_alike_are_told_apart(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = vector_store._hash
    monkeypatch.setattr(vector_store, "_hash", lambda said: b"the same" + plain(said)[8:])
    np.testing.assert_allclose(stored_features(base, TEXTS), features(base, TEXTS).numpy(), atol=1e-5)


def test_two_processes_add_to_one_store(base: Base) -> None:
    first, second = (feature_store(base, "mean", torch.float32) for _ in range(2))

    def take(store: VectorStore, texts: list[str]) -> np.ndarray:
        return store.take(texts, str.encode, lambda missing, _: features(base, missing).numpy())

    a, b = take(first, ["a", "b"]), take(second, ["c", "b", "d"])
    assert len(second) == 5  # "b" came in twice, which harms nobody
    assert np.array_equal(take(second, ["a", "b"]), a)
    assert np.array_equal(take(first, ["c", "b", "d"]), b)


def test_a_killed_process_leaves_what_it_had_committed(base: Base) -> None:
    program = (
        "import sys\n"
        "from adapterhub.base import feature_store, vector_store\n"
        "from adapterhub.base.source import open_base\n"
        "vector_store.CHUNK = 1\n"
        "texts = (str(n) for n in range(10**6))\n"
        "feature_store.stored_features(open_base(sys.argv[1]), texts, progress=print)\n"
    )
    child = subprocess.Popen([sys.executable, "-uc", program, str(base.path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(3):
        assert child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    known = (folder(base) / "keys").stat().st_size // 16
    assert known >= 3
    texts = [str(n) for n in range(known)]
    found = stored_features(base, texts)
    assert (folder(base) / "keys").stat().st_size == 16 * known
    np.testing.assert_allclose(found, features(base, texts).numpy(), atol=1e-5)


def test_what_cannot_be_read_is_refused_and_what_is_long_is_cut(base: Base) -> None:
    with pytest.raises(InvalidRequest, match="max"):
        stored_features(base, ["a"], "max")
    with pytest.raises(InvalidRequest, match="text 2: the text is empty"):
        stored_features(base, ["a", "b", ""])
    long = "b" * 600
    assert np.allclose(stored_features(base, [long]), stored_features(base, ["b" * 512]), atol=1e-5)


def test_a_cache_that_cannot_be_written_is_told_of(base: Base, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterHubError, match="ADAPTERHUB_CACHE"):
        stored_features(base, ["a"], cache=tmp_path / "file")
