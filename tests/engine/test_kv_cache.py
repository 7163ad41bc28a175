"""The cache of keys and values: what rows keep while others come, go and need more room."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.engine.kv_cache import CacheShape, KVCache, Place

SHAPE = CacheShape(layers=2, heads=3, head_dim=4)
PER_POSITION = 2 * SHAPE.layers * SHAPE.heads * SHAPE.head_dim * 4


def make(max_tokens: int = 1024) -> KVCache:
    return KVCache(SHAPE, torch.float32, torch.device("cpu"), max_tokens)


def states(length: int, value: float) -> torch.Tensor:
    return torch.full((SHAPE.layers, 2, SHAPE.heads, length, SHAPE.head_dim), value)


def taken(cache: KVCache, room: int) -> Place:
    place = cache.take(room)
    assert place is not None
    return place


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(st.tuples(st.just("take"), st.integers(1, 600)), st.tuples(st.just("release"), st.integers(0, 9)))
    )
)
def test_rows_keep_what_they_hold_and_memory_stays_in_bounds(life: list[tuple[str, int]]) -> None:
    cache = make()
    rows: list[tuple[Place, int, float]] = []
    for step, (what, number) in enumerate(life):
        if what == "take" and (place := cache.take(number)) is not None:
            cache.write(place, 0, states(number, step + 1.0))
            rows.append((place, number, step + 1.0))
        elif what == "release" and rows:
            cache.release(rows.pop(number % len(rows))[0])
        assert cache.bytes <= 1024 * PER_POSITION
        for place, length, value in rows:
            assert torch.equal(cache.read(place, 0, length), states(length, value))
            rest = place.block.data[:, :, place.index, :, length:]
            assert not rest.any()
            assert sorted(p.index for p in place.block.places) == list(range(len(place.block.places)))
    for place, _, _ in rows:
        cache.release(place)
    assert cache.bytes == 0


def test_what_a_poisoned_row_leaves_behind_is_wiped() -> None:
    cache = make()
    first, second = taken(cache, 10), taken(cache, 10)
    cache.write(first, 0, states(10, float("nan")))
    cache.write(second, 0, states(4, 2.0))
    data = second.block.data
    cache.release(first)
    assert torch.equal(cache.read(second, 0, 4), states(4, 2.0))
    cache.release(second)
    assert not data.any()


def test_many_short_rows_and_a_long_one_share_the_limit() -> None:
    cache = make(max_tokens=1024)
    short = [taken(cache, 100) for _ in range(8)]
    assert cache.take(1) is None
    assert cache.could(1000)
    assert not cache.could(1025)
    for place in short:
        cache.release(place)
    long = taken(cache, 1000)
    assert cache.take(1) is None
    cache.release(long)
    assert cache.take(100) is not None


def test_a_long_row_does_not_lengthen_the_others() -> None:
    cache = make(max_tokens=4096)
    short, long = taken(cache, 100), taken(cache, 2000)
    assert short.block.positions < 200
    assert long.block.positions >= 2000


def test_memory_that_other_blocks_hold_for_nobody_is_taken_back() -> None:
    cache = make(max_tokens=1024)
    short = [taken(cache, 100) for _ in range(8)]
    for place in short[1:]:
        cache.release(place)
    cache.write(short[0], 0, states(100, 7.0))
    long = taken(cache, 500)
    assert long.block.positions == 512
    assert cache.bytes <= 1024 * PER_POSITION
    assert torch.equal(cache.read(short[0], 0, 100), states(100, 7.0))


def test_running_out_of_memory_leaves_the_rows_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make(max_tokens=4096)
    place = taken(cache, 10)
    cache.write(place, 0, states(10, 3.0))

    def none(*args: object, **kwargs: object) -> torch.Tensor:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", none)
        with pytest.raises(MemoryError):
            [cache.take(10) for _ in range(32)]
    assert torch.equal(cache.read(place, 0, 10), states(10, 3.0))
    assert cache.take(10) is not None
