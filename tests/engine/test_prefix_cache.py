"""The prefix cache: what is found, for whom, and what leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adapterhub.engine.prefix_cache import CHUNK, Namespace, PrefixCache

NAME = Namespace("base", "lean/float32", "sha256:a")
OTHERS = [
    NAME._replace(adapter="sha256:b"),
    NAME._replace(adapter=""),
    NAME._replace(fingerprint="another"),
    NAME._replace(identity="lean/bfloat16"),
]
CHUNK_BYTES = 1 * 2 * 1 * CHUNK * 1 * 4


def states(tokens: tuple[int, ...], salt: int = 0) -> Callable[[int, int], Tensor]:
    """Return a reader of states [1, 2, 1, positions, 1] that depend on all tokens so far, as real ones do."""
    values = torch.tensor([hash((salt, tokens[: i + 1])) % 9973 for i in range(len(tokens))], dtype=torch.float32)
    return lambda start, stop: values[start:stop].reshape(1, 1, 1, -1, 1).expand(1, 2, 1, -1, 1).clone()


def add(cache: PrefixCache, tokens: tuple[int, ...], name: Namespace = NAME, salt: int = 0) -> None:
    cache.add(name, tokens, states(tokens, salt))


def test_the_longest_known_beginning_is_found_in_whole_chunks() -> None:
    cache = PrefixCache(1 << 20)
    known = tuple(range(3 * CHUNK + 5))
    add(cache, known)
    assert len(cache) == 3
    found = cache.match(NAME, (*known[: 2 * CHUNK + 7], *range(900, 940)))
    assert found is not None
    assert torch.equal(found, states(known)(0, 2 * CHUNK))
    assert cache.hits == 1
    assert cache.reused == 2 * CHUNK
    assert cache.bytes == 3 * CHUNK_BYTES


def test_one_token_is_always_left_to_run() -> None:
    cache = PrefixCache(1 << 20)
    known = tuple(range(2 * CHUNK))
    add(cache, known)
    for size, expected in [(2 * CHUNK, CHUNK), (2 * CHUNK + 1, 2 * CHUNK), (CHUNK + 1, CHUNK)]:
        found = cache.match(NAME, tuple(range(size)))
        assert found is not None
        assert found.shape[3] == expected
    assert cache.match(NAME, known[:CHUNK]) is None


@pytest.mark.parametrize("other", OTHERS)
def test_nothing_is_shared_between_namespaces(other: Namespace) -> None:
    cache = PrefixCache(1 << 20)
    tokens = tuple(range(3 * CHUNK))
    add(cache, tokens)
    assert cache.match(other, tokens) is None
    add(cache, tokens, other, salt=1)
    mine, theirs = cache.match(NAME, tokens), cache.match(other, tokens)
    assert mine is not None
    assert theirs is not None
    assert torch.equal(mine, states(tokens)(0, 2 * CHUNK))
    assert torch.equal(theirs, states(tokens, 1)(0, 2 * CHUNK))


def test_equal_chunks_after_different_beginnings_are_different() -> None:
    cache = PrefixCache(1 << 20)
    tail = tuple(range(CHUNK))
    first, second = (1,) * CHUNK + tail, (2,) * CHUNK + tail
    add(cache, first)
    add(cache, second)
    for tokens in (first, second):
        found = cache.match(NAME, (*tokens, 0))
        assert found is not None
        assert torch.equal(found, states(tokens)(0, 2 * CHUNK))


def test_what_is_known_is_not_copied_again() -> None:
    cache = PrefixCache(1 << 20)
    tokens = tuple(range(4 * CHUNK))
    add(cache, tokens[: 2 * CHUNK])
    read = []

    def reader(start: int, stop: int) -> Tensor:
        read.append((start, stop))
        return states(tokens)(start, stop)

    cache.add(NAME, tokens, reader)
    assert read == [(2 * CHUNK, 3 * CHUNK), (3 * CHUNK, 4 * CHUNK)]


def test_the_least_recently_used_end_of_a_chain_leaves_first() -> None:
    cache = PrefixCache(3 * CHUNK_BYTES)
    old, new = tuple(range(2 * CHUNK)), tuple(range(500, 500 + 2 * CHUNK))
    add(cache, old)
    add(cache, new)
    assert cache.bytes <= cache.budget
    found = cache.match(NAME, (*old, 0))
    assert found is not None
    assert found.shape[3] == CHUNK
    found = cache.match(NAME, (*new, 0))
    assert found is not None
    assert found.shape[3] == 2 * CHUNK


def test_no_budget_keeps_and_reads_nothing() -> None:
    cache = PrefixCache(0)

    def reader(start: int, stop: int) -> Tensor:
        raise AssertionError

    cache.add(NAME, tuple(range(CHUNK)), reader)
    assert cache.match(NAME, tuple(range(CHUNK + 1))) is None


def test_an_adapter_that_is_dropped_leaves_no_bytes() -> None:
    cache = PrefixCache(1 << 20)
    tokens = tuple(range(3 * CHUNK))
    add(cache, tokens)
    add(cache, tokens, OTHERS[0])
    cache.drop(NAME.adapter)
    assert cache.match(NAME, tokens) is None
    assert cache.match(OTHERS[0], tokens) is not None
    cache.drop(OTHERS[0].adapter)
    assert cache.bytes == len(cache) == 0


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 1), st.lists(st.integers(0, 2), max_size=5)), min_size=1, max_size=40
    ),
    st.integers(0, 6),
)
def test_whatever_is_found_is_what_was_computed(asked: list[tuple[bool, int, list[int]]], room: int) -> None:
    cache = PrefixCache(room * CHUNK_BYTES)
    for adds, which, blocks in asked:
        tokens = (*(block for block in blocks for _ in range(CHUNK)), 9)
        name = (NAME, OTHERS[0])[which]
        if adds:
            add(cache, tokens, name, salt=which)
        else:
            found = cache.match(name, tokens)
            if found is not None:
                assert torch.equal(found, states(tokens, which)(0, found.shape[3]))
        assert cache.bytes == len(cache) * CHUNK_BYTES <= cache.budget
        _assert_no_orphans(cache)


def _assert_no_orphans(cache: PrefixCache) -> None:
    """A chunk whose predecessor has left could never be found again, and would only take room."""
    ids = {entry.id for entry in cache._entries.values()}
    assert all(isinstance(before, Namespace) or before in ids for before, _ in cache._entries)
