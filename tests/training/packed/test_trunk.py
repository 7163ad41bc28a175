"""The trunk kept on disk: the decoder's own states, computed once, whoever computes them, while there is room."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapterhub.base.stored import stored_weights
from adapterhub.training.packed.decoder import PackedDecoder
from adapterhub.training.packed.line import pack
from adapterhub.training.packed.trunk import Trunk, fits_on_disk
from adapterhub.training.rows import Row
from adapterhub.training.train import Trained, Trainer
from tests.training.jobs import Recorder, make_job, tiny_base, toy_rows

Ids = tuple[int, ...]
TEXTS: list[Ids] = [(5, 6, 7), (5, 6, 8, 9), (10,), (5, 6, 7), (11, 12, 13, 14), (5, 6)]
BASE = "sha256:0123456789abcdef0123"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> PackedDecoder:
    return PackedDecoder(stored_weights(tiny_base(tmp_path_factory.mktemp("base")), torch.float32))


def rows_of(texts: list[Ids]) -> list[Row]:
    return [Row(ids, len(ids), (), 1.0, "") for ids in texts]


def states_of(trunk: Trunk, texts: list[Ids]) -> list[Tensor]:
    """Kept states, text by text."""
    rows = rows_of(texts)
    line = pack([(rows, "last", True)])
    found = trunk.states(line, [rows])
    return [found[list(place)] for place in line.places[0]]


def computed(decoder: PackedDecoder, ids: Ids, depth: int) -> Tensor:
    return decoder.trunk(pack([(rows_of([ids]), "last", False)]), depth)


def files(root: Path, end: str = "*") -> list[Path]:
    return sorted(path for path in root.rglob(end) if path.is_file())


@contextmanager
def computing(decoder: PackedDecoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Collect how many tokens go through the decoder's trunk."""
    tokens: list[int] = []
    original = decoder.trunk

    def counted(line: Any, depth: int) -> Tensor:
        tokens.append(len(line.tokens))
        return original(line, depth)

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "trunk", counted)
        yield tokens


@pytest.mark.parametrize("depth", [1, 2])
def test_states_are_the_decoders_own_in_bfloat16(tmp_path: Path, decoder: PackedDecoder, depth: int) -> None:
    trunk = Trunk(tmp_path, BASE, decoder, depth)
    assert trunk.fill(TEXTS) == 14  # each text once
    for ids, found in zip(TEXTS, states_of(trunk, TEXTS), strict=True):
        assert found.dtype == decoder.dtype
        torch.testing.assert_close(found, computed(decoder, ids, depth), rtol=2**-8, atol=1e-5)
        assert torch.equal(found, found.bfloat16().float())


def test_the_decoder_goes_on_from_kept_states_as_from_its_own(tmp_path: Path, decoder: PackedDecoder) -> None:
    trunk = Trunk(tmp_path, BASE, decoder, 2)
    trunk.fill(TEXTS)
    rows = rows_of(TEXTS)
    line = pack([(rows, "all", True)])
    kept = decoder.forward(line, [None], learn=False, first=2, trunk=trunk.states(line, [rows])).clone()
    torch.testing.assert_close(kept, decoder.forward(line, [None], learn=False), rtol=0.03, atol=0.03)


def test_what_is_kept_is_not_computed_again_by_anyone(
    tmp_path: Path, decoder: PackedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = Trunk(tmp_path, BASE, decoder, 1)
    assert trunk.tokens_missing(TEXTS) == 14
    trunk.fill(TEXTS[:3])
    assert trunk.tokens_missing(TEXTS) == 6
    with computing(decoder, monkeypatch) as tokens:
        assert trunk.fill(TEXTS[:3]) == 0
        other = Trunk(tmp_path, BASE, decoder, 1)
        assert other.fill(reversed(TEXTS[:3])) == 0
        assert tokens == []
        told: list[tuple[int, int]] = []
        assert other.fill(TEXTS, lambda done, total: told.append((done, total))) == 6
        assert tokens == [6]
        assert told == [(6, 6)]
    # The first one sees what the other has added once it looks.
    assert trunk.tokens_missing(TEXTS) == 0
    assert all(torch.equal(*pair) for pair in zip(states_of(trunk, TEXTS), states_of(other, TEXTS), strict=True))


def test_base_depth_and_dtype_are_kept_apart(tmp_path: Path, decoder: PackedDecoder) -> None:
    Trunk(tmp_path, BASE, decoder, 1).fill(TEXTS)
    assert Trunk(tmp_path, BASE, decoder, 2).tokens_missing(TEXTS) == 14
    assert Trunk(tmp_path, "sha256:ffff", decoder, 1).tokens_missing(TEXTS) == 14
    (folder,) = tmp_path.iterdir()
    assert folder.name == "0123456789abcdef-1-float32"


def test_many_shards_and_lines_hold_the_same(
    tmp_path: Path, decoder: PackedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trunk(tmp_path / "whole", BASE, decoder, 1)
    whole.fill(TEXTS)
    monkeypatch.setattr("adapterhub.training.packed.trunk._SHARD_TOKENS", 6)
    monkeypatch.setattr("adapterhub.training.packed.trunk._LINE_TOKENS", 3)
    cut = Trunk(tmp_path / "cut", BASE, decoder, 1)
    told: list[tuple[int, int]] = []
    cut.fill(TEXTS, lambda done, total: told.append((done, total)))
    assert told == [(5, 14), (10, 14), (14, 14)]
    assert len(files(tmp_path / "cut", "*.states")) == 3
    for one, other in zip(states_of(whole, TEXTS), states_of(cut, TEXTS), strict=True):
        torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-5)


def test_an_interrupted_fill_keeps_the_shards_before_and_leaves_nothing_half(
    tmp_path: Path, decoder: PackedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub.training.packed.trunk._SHARD_TOKENS", 6)
    trunk = Trunk(tmp_path, BASE, decoder, 1)
    original, calls = decoder.trunk, []

    def interrupted(line: Any, depth: int) -> Tensor:
        calls.append(line)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(line, depth)

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "trunk", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trunk.fill(TEXTS)
    assert [path.suffix for path in files(tmp_path)] == [".index", ".states"] * 2
    again = Trunk(tmp_path, BASE, decoder, 1)
    assert again.fill(TEXTS) == 4
    assert len(states_of(again, TEXTS)) == 6


@pytest.mark.parametrize("damage", ["states gone", "states cut", "states odd", "index cut", "index odd", "index empty"])
def test_a_half_written_shard_is_not_read_but_made_anew(tmp_path: Path, decoder: PackedDecoder, damage: str) -> None:
    trunk = Trunk(tmp_path, BASE, decoder, 1)
    trunk.fill(TEXTS)
    expected = states_of(trunk, TEXTS)
    what, how = damage.split()
    (path,) = files(tmp_path, f"*.{what}")
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.unlink()  # the one that is mapped stays what it was
        path.write_bytes({"cut": data[: len(data) - len(data) // 14], "odd": data[:-3], "empty": b""}[how])
    again = Trunk(tmp_path, BASE, decoder, 1)
    assert again.tokens_missing(TEXTS) == 14
    again.fill(TEXTS)
    assert all(torch.equal(*pair) for pair in zip(states_of(again, TEXTS), expected, strict=True))
    assert Trunk(tmp_path, BASE, decoder, 1).tokens_missing(TEXTS) == 0


def test_a_full_disk_keeps_what_was_there_and_leaves_no_scratch(
    tmp_path: Path, decoder: PackedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = Trunk(tmp_path, BASE, decoder, 1)
    trunk.fill(TEXTS[:2])
    before = files(tmp_path)

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        trunk.fill(TEXTS)
    assert files(tmp_path) == before
    assert trunk.tokens_missing(TEXTS[:2]) == 0


def test_several_may_fill_at_once(tmp_path: Path, decoder: PackedDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each its own decoder over the same weights: a process of its own.
    monkeypatch.setattr("adapterhub.training.packed.trunk._SHARD_TOKENS", 4)
    parts = [TEXTS[:4], TEXTS[2:], TEXTS, TEXTS[::-1]]
    whole = Trunk(tmp_path / "whole", BASE, decoder, 1)
    whole.fill(TEXTS)
    decoders = [_copy(decoder) for _ in parts]
    monkeypatch.setattr("adapterhub.training.packed.trunk.os.getpid", iter(range(1000)).__next__)
    trunks = [Trunk(tmp_path / "many", BASE, each, 1) for each in decoders]
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(Trunk.fill, trunks, parts))
    last = Trunk(tmp_path / "many", BASE, decoder, 1)
    assert last.tokens_missing(TEXTS) == 0
    assert {path.suffix for path in files(tmp_path / "many")} == {".index", ".states"}
    for one, other in zip(states_of(whole, TEXTS), states_of(last, TEXTS), strict=True):
        torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-5)


def _copy(decoder: PackedDecoder) -> PackedDecoder:
    from adapterhub.training.packed.workspace import Workspace

    found = object.__new__(PackedDecoder)
    found.__dict__.update(decoder.__dict__)
    found._work = Workspace(decoder.dtype, decoder.device)
    return found


def test_shards_used_longest_ago_make_room(
    tmp_path: Path, decoder: PackedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = decoder.hidden * 2 * 4  # bytes of four tokens
    texts = [(20 + i, 1, 2, 3) for i in range(4)]
    trunk = Trunk(tmp_path, BASE, decoder, 1)
    for i, ids in enumerate(texts[:3]):
        trunk.fill([ids])
        for path in files(tmp_path):
            if path.stat().st_mtime > 10**9:
                os.utime(path, (1000 + i, 1000 + i))
    # The oldest is used again, by another.
    assert Trunk(tmp_path / "..", "x", decoder, 1).tokens_missing([texts[0]]) == 4
    by_age = sorted(files(tmp_path, "*.index"), key=lambda path: path.stat().st_mtime)
    os.utime(by_age[0])
    monkeypatch.setattr("adapterhub.training.packed.trunk._MOST_BYTES", 3 * text)
    trunk.fill([texts[3]])
    fresh = Trunk(tmp_path, BASE, decoder, 1)
    assert [fresh.tokens_missing([ids]) for ids in texts] == [0, 4, 0, 0]
    assert len(files(tmp_path)) == 6
    # What was removed while it is in use stays readable.
    assert len(states_of(trunk, texts)) == 4


def test_reading_a_shard_counts_as_use(tmp_path: Path, decoder: PackedDecoder) -> None:
    Trunk(tmp_path, BASE, decoder, 1).fill(TEXTS)
    (index,) = files(tmp_path, "*.index")
    os.utime(index, (1000, 1000))
    Trunk(tmp_path, BASE, decoder, 1).tokens_missing(TEXTS)
    assert index.stat().st_mtime > 10**9


def test_room_is_half_of_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage: Any = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("adapterhub.training.packed.trunk.shutil.disk_usage", lambda folder: usage)
    assert fits_on_disk(tmp_path / "not" / "yet", 500)
    assert not fits_on_disk(tmp_path / "not" / "yet", 501)
    monkeypatch.setattr("adapterhub.training.packed.trunk._MOST_BYTES", 400)
    assert not fits_on_disk(tmp_path, 401)


# Through a training


def trained(base: Any, progress: Recorder, **lora: Any) -> Trained:
    settings = {"steps": 20, "batch_size": 8, "learning_rate": 5e-3, "precision": "float32"}
    job = make_job(base, toy_rows(40), toy_rows(10, seed=1), training=settings, lora={"rank": 4, **lora})
    (outcome,) = Trainer(base, "float32").train([job], progress)
    assert isinstance(outcome, Trained)
    return outcome


def test_a_training_above_the_trunk_is_the_one_without_it(
    tmp_path: Path, trunks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, progress = tiny_base(tmp_path), Recorder()
    with_trunk = trained(base, progress, layers="top-1", dropout=0.1)
    assert len(files(trunks, "*.states")) == 1
    assert with_trunk.result.trunk_seconds > 0
    assert any("through the 2 layers below the adapter, kept for other trainings" in each for each in progress.told)
    # Another seed of the same data computes nothing.
    again = Recorder()
    assert trained(base, again, layers="top-1", rank=2).result.trunk_seconds == 0
    assert not any("layers below" in each for each in again.told)
    monkeypatch.setattr("adapterhub.training.train.fits_on_disk", lambda root, needed: False)
    without_progress = Recorder()
    without = trained(base, without_progress, layers="top-1", dropout=0.1)
    assert any("no room on the disk" in each for each in without_progress.told)
    assert [e.loss for e in with_trunk.result.history] == pytest.approx(
        [e.loss for e in without.result.history], rel=0.05
    )
    for name, tensor in without.tensors.items():
        difference = float((with_trunk.tensors[name] - tensor).norm() / tensor.norm())
        assert difference < 0.1, name


def test_a_trunk_that_cannot_be_written_is_told_and_training_goes_on(
    tmp_path: Path, trunks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Trunk, sequences: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Trunk, "fill", full)
    progress = Recorder()
    assert trained(tiny_base(tmp_path), progress, layers="top-1").result.steps == 20
    assert any("cannot be kept (No space left on device)" in each for each in progress.told)
