"""The cache of keys and values: what rows keep while it grows, shrinks and loses rows."""

from __future__ import annotations

import pytest
import torch

from adapterhub.engine.kv_cache import CacheShape, KVCache

SHAPE = CacheShape(layers=2, heads=3, head_dim=4)
FLOAT = 4


def make(max_tokens: int = 1024) -> KVCache:
    return KVCache(SHAPE, torch.float32, torch.device("cpu"), max_tokens)


def fill(cache: KVCache, row: int, length: int) -> None:
    for layer in range(SHAPE.layers):
        cache.keys[layer][row, :, :length] = row + 1
        cache.values[layer][row, :, :length] = -(row + 1)


def test_rows_keep_what_they_hold_while_blocks_grow() -> None:
    cache = make()
    cache.reserve(2, 10, 0)
    fill(cache, 0, 10)
    fill(cache, 1, 10)
    cache.reserve(5, 100, 2)
    for layer in range(SHAPE.layers):
        assert cache.keys[layer].shape[2] >= 100
        for row in (0, 1):
            assert torch.all(cache.keys[layer][row, :, :10] == row + 1)
            assert torch.all(cache.values[layer][row, :, :10] == -(row + 1))
        assert torch.all(cache.values[layer][2:] == 0)


def test_many_short_rows_then_a_long_one_stay_within_the_limit() -> None:
    cache = make(max_tokens=1024)
    cache.reserve(16, 64, 0)
    fill(cache, 0, 64)
    cache.reserve(1, 1000, 1)
    per_position = 2 * SHAPE.layers * SHAPE.heads * SHAPE.head_dim * FLOAT
    assert cache.bytes <= 1024 * per_position
    assert torch.all(cache.keys[0][0, :, :64] == 1)
    cache.reserve(16, 64, 1)
    assert cache.bytes <= 1024 * per_position
    assert cache.keys[0].shape[0] >= 16


def test_the_last_row_moves_into_the_gap_and_nothing_is_left_behind() -> None:
    cache = make()
    cache.reserve(3, 20, 0)
    for row, length in enumerate((20, 5, 9)):
        fill(cache, row, length)
    cache.values[0][0, 0, 0, 0] = float("nan")
    cache.free(0, 2, used=20, last_used=9)
    assert torch.all(cache.keys[0][0, :, :9] == 3)
    assert torch.all(cache.values[0][0, :, :9] == -3)
    assert torch.all(cache.values[0][2] == 0)
    assert torch.isfinite(cache.values[0]).all()


def test_running_out_of_memory_leaves_the_old_blocks_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make()
    cache.reserve(2, 10, 0)
    fill(cache, 0, 10)
    real, made = torch.zeros, []

    def few(*args: object, **kwargs: object) -> torch.Tensor:
        made.append(1)
        if len(made) > 2:
            raise MemoryError
        return real(*args, **kwargs)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "zeros", few)
    with pytest.raises(MemoryError):
        cache.reserve(4, 200, 1)
    monkeypatch.undo()
    cache.reserve(4, 200, 1)
    assert torch.all(cache.keys[1][0, :, :10] == 1)
