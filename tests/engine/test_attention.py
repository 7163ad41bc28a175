"""Attention over a packed line against one row at a time, in plain steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapterhub.engine.attention import attend, packed_attention
from adapterhub.engine.batch import Batch
from adapterhub.engine.kv_cache import CacheShape, KVCache
from adapterhub.engine.plan import Plan, Span
from adapterhub.engine.request import Request, Row, Sampling

CPU = torch.device("cpu")
HEADS, DIM, LAYERS, SCALE = 4, 4, 2, 0.5


@dataclass
class Text:
    """A row with the queries, keys and values of every token it will ever have."""

    row: Row
    q: Tensor
    k: Tensor
    v: Tensor
    size: int
    done: int = 0
    checked: list[int] = field(default_factory=list)


def reference(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """[tokens, heads, dim] each, one head and one token at a time; `allowed` bool [queries, keys]."""
    out = torch.zeros_like(q)
    groups = q.shape[1] // k.shape[1]
    for head in range(q.shape[1]):
        for i in range(q.shape[0]):
            keys, values = k[allowed[i], head // groups], v[allowed[i], head // groups]
            out[i, head] = torch.softmax(keys @ q[i, head] * SCALE, dim=0) @ values
    return out


def causal(queries: range, keys: int, window: int | None) -> Tensor:
    return torch.tensor([[j <= i and (window is None or j > i - window) for j in range(keys)] for i in queries])


def text(cache: KVCache, length: int, answer: int, kv_heads: int, generator: torch.Generator, slot: int) -> Text:
    row = Row(Request(tuple(range(1, length + 1)), lambda _: None, Sampling(answer)), slot)
    row.place = cache.take(length + answer)
    total = length + answer
    q, k, v = (
        torch.randn(total, h, DIM, generator=generator, dtype=torch.float64) for h in (HEADS, kv_heads, kv_heads)
    )
    return Text(row, q, k, v, length)


@settings(max_examples=120, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9) | st.just(140), min_size=1, max_size=5),
    steps=st.lists(st.integers(0, 5), min_size=3, max_size=12),
    kv_heads=st.sampled_from([1, 2, 4]),
    window=st.sampled_from([None, 3, 6]),
    seed=st.integers(0, 100),
)
def test_rows_at_any_stage_side_by_side(
    lengths: list[int], steps: list[int], kv_heads: int, window: int | None, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    cache = KVCache(CacheShape(LAYERS, kv_heads, DIM), torch.float64, CPU, 4096)
    texts = [text(cache, n, 12, kv_heads, generator, slot=i % 3 - 1) for i, n in enumerate(lengths)]
    for step in steps:
        decode: list[Row] = []
        spans: list[Span] = []
        first: dict[int, int] = {}
        for i, each in enumerate(texts):
            row = each.row
            first[id(row)] = each.done
            if each.done < each.size:
                stop = min(each.size, each.done + 1 + (step + i) % 5 * 30)
                if (step + i) % 4:
                    spans.append(Span(row, row.request.tokens[each.done : stop], each.done, True, stop == each.size))
                    each.done = stop
            elif len(row.output) < 11 and (step + i) % 3:
                row.output.append(7)
                decode.append(row)
                each.done += 1
        if not decode and not spans:
            continue
        batch = Batch(Plan(tuple(decode), tuple(spans)), cache, CPU, causal=True)
        by_row = {id(each.row): each for each in texts}
        order = [(row, 1) for row in batch.decode] + [(span.row, len(span.tokens)) for span in batch.spans]
        parts = [slice(first[id(row)], first[id(row)] + n) for row, n in order]
        q, k, v = (
            torch.cat([getattr(by_row[id(row)], name)[part] for (row, _), part in zip(order, parts, strict=True)])
            for name in "qkv"
        )
        found = attend(batch, 1, q, k, v, SCALE, window)
        start = 0
        for (row, n), part in zip(order, parts, strict=True):
            each = by_row[id(row)]
            allowed = causal(range(part.start, part.stop), part.stop, window)
            expected = reference(each.q[part], each.k[: part.stop], each.v[: part.stop], allowed)
            torch.testing.assert_close(found[start : start + n], expected.flatten(1), rtol=1e-10, atol=1e-10)
            assert batch.positions[start : start + n].tolist() == list(range(part.start, part.stop))
            start += n


@pytest.mark.parametrize("window", [None, 4])
def test_branches_see_the_past_and_themselves_only(window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    cache = KVCache(CacheShape(LAYERS, 2, DIM), torch.float64, CPU, 512)
    each = text(cache, 5, 6, 2, generator, slot=0)
    whole = Span(each.row, each.row.request.tokens, 0, keeps=True, last=True)
    branches = Span(each.row, (9, 9, 8, 8, 8, 7), 5, keeps=False, last=False, branches=(2, 3, 1))
    batch = Batch(Plan((), (whole, branches)), cache, CPU, causal=True)
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 5]
    found = attend(batch, 0, each.q, each.k, each.v, SCALE, window)
    for part in (slice(5, 7), slice(7, 10), slice(10, 11)):
        keys, values = (torch.cat([t[:5], t[part]]) for t in (each.k, each.v))
        size = part.stop - part.start
        expected = reference(each.q[part], keys, values, causal(range(5, 5 + size), 5 + size, window))
        torch.testing.assert_close(found[part], expected.flatten(1), rtol=1e-10, atol=1e-10)
    assert each.row.place is not None
    assert not cache.read(each.row.place, 5, 11).any()


def test_an_encoder_looks_both_ways() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [Row(Request(tuple(range(n)), lambda _: None, Sampling(1)), -1) for n in (3, 5)]
    spans = tuple(Span(row, row.request.tokens, 0, keeps=False, last=True) for row in rows)
    batch = Batch(Plan((), spans), None, CPU, causal=False)
    q, k, v = (torch.randn(8, HEADS, DIM, generator=generator, dtype=torch.float64) for _ in range(3))
    found = attend(batch, 0, q, k, v, SCALE)
    for part in (slice(0, 3), slice(3, 8)):
        everything = torch.ones(part.stop - part.start, part.stop - part.start, dtype=torch.bool)
        expected = reference(q[part], k[part], v[part], everything)
        torch.testing.assert_close(found[part], expected.flatten(1), rtol=1e-10, atol=1e-10)


def test_a_poisoned_row_poisons_nobody() -> None:
    generator = torch.Generator().manual_seed(0)
    cache = KVCache(CacheShape(1, 2, DIM), torch.float32, CPU, 2048)
    rows = [Row(Request((1, 2, 3), lambda _: None, Sampling(4)), -1) for _ in range(3)]
    outputs = []
    for value in (1.0, float("nan")):
        for row in rows:
            row.place = cache.take(row.request.room)
            row.output[:] = []
        spans = tuple(Span(row, row.request.tokens, 0, keeps=True, last=True) for row in rows)
        q, k, v = (torch.randn(9, h, DIM, generator=generator.manual_seed(1)) for h in (HEADS, 2, 2))
        k[3:6], v[3:6] = value, value
        first = attend(Batch(Plan((), spans), cache, CPU, causal=True), 0, q, k, v, SCALE)
        for row in rows:
            row.output.append(5)
        batch = Batch(Plan(tuple(rows)), cache, CPU, causal=True)
        second = attend(batch, 0, q[:3], k[:3], v[:3], SCALE)
        outputs.append((first[[0, 1, 2, 6, 7, 8]], second[[0, 2]]))
        for row in rows:
            assert row.place is not None
            cache.release(row.place)
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])


def test_attention_that_asks_for_more_is_refused() -> None:
    row = Row(Request((1,), lambda _: None, Sampling(1)), -1)
    batch = Batch(Plan((), (Span(row, (1,), 0, False, True),)), None, CPU, causal=True)
    one = torch.zeros(1, 1, 1, 2)
    with pytest.raises(ValueError, match="softcap"):
        packed_attention(torch.nn.Identity(), one, one, one, None, packed=batch, softcap=30.0)
