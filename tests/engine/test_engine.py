"""The engine against plain PEFT and transformers, which know nothing of packed batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.engine.request import Adapter, Ask, Embed, Sampling, Score, TokenEvent
from adapterhub.engine.scheduler import Limits
from adapterhub.errors import CorruptAdapter, InvalidRequest, Overloaded, PromptTooLong, UnsupportedRequest, UsageError
from adapterhub.lora.weights import LoraWeights
from tests.adapters import load_peft, load_plain, make_adapter
from tests.tiny import make_tiny_base

from .stand_ins import settle
from .support import ALL, DECODERS, Asked, adapter_of, assert_free, finish, make_engine

PROMPTS = [[5, 6, 7, 8, 9], [40, 41], [100, 90, 80, 70, 60, 50, 40, 30, 20], [7] * 30]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {family: make_tiny_base(root / family, family) for family in ALL}


def greedy(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    """The slow way: the whole text through the plain model for every token."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", DECODERS)
def test_generation_equals_peft_in_a_mixed_batch(family: str, bases: dict[str, Path], tmp_path: Path) -> None:
    folders = [
        make_adapter(bases[family], tmp_path / f"a{i}", family, rank=rank, seed=i, rslora=rslora, layers=layers)
        for i, (rank, rslora, layers) in enumerate([(1, False, None), (8, True, [0, 2]), (64, False, None)])
    ]
    engine = make_engine(bases[family], family)
    asked = [Asked(PROMPTS[0], None, max_tokens=12)]
    expected = [greedy(load_plain(bases[family], None), PROMPTS[0], 12)]
    for folder, prompt in zip(folders, PROMPTS[1:], strict=True):
        asked.append(Asked(prompt, adapter_of(folder, family, labels=False), max_tokens=12))
        expected.append(greedy(load_peft(bases[family], folder, None), prompt, 12))
    finish(engine, *asked)
    assert [a.tokens for a in asked] == expected
    assert len({tuple(tokens) for tokens in expected}) > 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "roberta"])
def test_classification_equals_peft_and_merged_weights(family: str, bases: dict[str, Path], tmp_path: Path) -> None:
    engine = make_engine(bases[family], family)
    for seed, rank in enumerate((1, 8, 64)):
        folder = make_adapter(bases[family], tmp_path / f"c{rank}", family, rank=rank, seed=seed, labels=3)
        asked = [Asked(prompt, adapter_of(folder, family, labels=True)) for prompt in PROMPTS]
        finish(engine, *asked)
        plain = load_peft(bases[family], folder, 3)
        merged = load_peft(bases[family], folder, 3).merge_and_unload()
        for item, prompt in zip(asked, PROMPTS, strict=True):
            with torch.inference_mode():
                logits = plain(input_ids=torch.tensor([prompt])).logits[0]
                logits_merged = merged(input_ids=torch.tensor([prompt])).logits[0]
            torch.testing.assert_close(item.logits, logits, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(item.logits, logits_merged, rtol=1e-4, atol=1e-4)


def test_agreement_in_float64(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = make_adapter(bases["llama"], tmp_path / "g", "llama", rank=8, rslora=True)
    engine = make_engine(bases["llama"], "llama", dtype=torch.float64)
    adapter = adapter_of(folder, "llama", labels=False, dtype=torch.float64)
    mixed = [Asked(p, adapter if i % 2 else None, max_tokens=6, logprobs=5) for i, p in enumerate(PROMPTS)]
    finish(engine, *mixed)
    plain, tuned = (
        load_plain(bases["llama"], None, torch.float64),
        load_peft(bases["llama"], folder, None, torch.float64),
    )
    for i, item in enumerate(mixed):
        ids = PROMPTS[i] + item.tokens
        with torch.inference_mode():
            scores = (tuned if i % 2 else plain)(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for k, event in enumerate(item.events):
            assert isinstance(event, TokenEvent)
            reference = float(scores[len(PROMPTS[i]) - 1 + k, event.token])
            # The sampler reports log-probabilities in float32.
            assert event.logprob == pytest.approx(reference, abs=1e-5)
            assert event.top[0] == (event.token, event.logprob)


def test_rows_join_and_leave_without_touching_others(bases: dict[str, Path], tmp_path: Path) -> None:
    folders = [make_adapter(bases["llama"], tmp_path / f"a{i}", "llama", seed=i) for i in range(3)]
    adapters = [None, *(adapter_of(folder, "llama", labels=False) for folder in folders)]
    alone = {}
    for i, adapter in enumerate(adapters):
        for j, prompt in enumerate(PROMPTS):
            item = Asked(prompt, adapter, max_tokens=5 + 3 * i + j)
            finish(make_engine(bases["llama"], "llama"), item)
            alone[i, j] = item.tokens
    engine = make_engine(bases["llama"], "llama", limits=Limits(rows=5, step_tokens=40), resident=2)
    asked = {key: Asked(PROMPTS[key[1]], adapters[key[0]], max_tokens=5 + 3 * key[0] + key[1]) for key in alone}
    for item in asked.values():
        engine.add(item.request)
        engine.step()
    finish(engine)
    assert {key: item.tokens for key, item in asked.items()} == alone
    assert engine.slots.evictions > 0
    assert_free(engine)


def test_classification_rides_in_the_same_batch(bases: dict[str, Path], tmp_path: Path) -> None:
    classifier = make_adapter(bases["llama"], tmp_path / "c", "llama", labels=4)
    writer = make_adapter(bases["llama"], tmp_path / "g", "llama", seed=3)
    engine = make_engine(bases["llama"], "llama")
    generated = Asked(PROMPTS[0], adapter_of(writer, "llama", labels=False), max_tokens=10)
    engine.add(generated.request)
    settle(engine.loader)
    engine.step()
    assert len(generated.tokens) == 1
    sorted_ = [Asked(p, adapter_of(classifier, "llama", labels=True)) for p in PROMPTS]
    finish(engine, *sorted_)
    assert generated.tokens == greedy(load_peft(bases["llama"], writer, None), PROMPTS[0], 10)
    reference = load_peft(bases["llama"], classifier, 4)
    for item, prompt in zip(sorted_, PROMPTS, strict=True):
        with torch.inference_mode():
            logits = reference(input_ids=torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(item.logits, logits, rtol=1e-4, atol=1e-4)


def test_poisoned_adapter_leaves_other_rows_bitwise_unchanged(bases: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    healthy = make_adapter(bases["llama"], tmp_path / "healthy", "llama", seed=1)
    victim = make_adapter(bases["llama"], tmp_path / "victim", "llama", seed=2)
    poisoned = make_adapter(bases["llama"], tmp_path / "poisoned", "llama", seed=1)
    tensors = load_file(poisoned / "adapter_model.safetensors")
    save_file({k: torch.full_like(t, 1e30) for k, t in tensors.items()}, poisoned / "adapter_model.safetensors")

    def others(first: Path) -> tuple[list[list[TokenEvent]], Asked]:
        engine = make_engine(bases["llama"], "llama")
        bad = Asked(PROMPTS[0], adapter_of(first, "llama", labels=False), max_tokens=8, logprobs=20)
        rest = [
            Asked(PROMPTS[1], adapter_of(victim, "llama", labels=False), max_tokens=8, logprobs=20),
            Asked(PROMPTS[2], None, max_tokens=8, logprobs=20),
        ]
        finish(engine, bad, *rest)
        # The freed row of the cache is used again: nothing of the poison may be left in it.
        again = Asked(PROMPTS[3], None, max_tokens=8, logprobs=20)
        finish(engine, again)
        return [list(item.events) for item in (*rest, again)], bad  # type: ignore[arg-type]

    clean, _ = others(healthy)
    dirty, bad = others(poisoned)
    assert isinstance(bad.error, CorruptAdapter)
    # First events come from the step both shared: bitwise equal. Later steps of `clean` still carry the healthy row.
    assert [events[0] for events in clean] == [events[0] for events in dirty]
    assert [[e.token for e in events] for events in clean] == [[e.token for e in events] for events in dirty]


def test_unknown_modules_and_no_effect_are_refused_alone(bases: dict[str, Path], tmp_path: Path) -> None:
    foreign = make_adapter(bases["gpt2"], tmp_path / "foreign", "gpt2")
    silent = make_adapter(bases["llama"], tmp_path / "silent", "llama", scale=0.0)
    good = make_adapter(bases["llama"], tmp_path / "good", "llama")
    engine = make_engine(bases["llama"], "llama")
    asked = [Asked(PROMPTS[0], adapter_of(f, "llama", labels=False), max_tokens=4) for f in (foreign, silent, good)]
    finish(engine, *asked)
    assert isinstance(asked[0].error, CorruptAdapter)
    assert "does not have" in str(asked[0].error)
    assert isinstance(asked[1].error, CorruptAdapter)
    assert "changes nothing" in str(asked[1].error)
    assert asked[2].tokens == greedy(load_peft(bases["llama"], good, None), PROMPTS[0], 4)


def test_cancelled_rows_leave_at_the_next_step(bases: dict[str, Path]) -> None:
    engine = make_engine(bases["llama"], "llama")
    gone, stays = Asked(PROMPTS[0], max_tokens=50), Asked(PROMPTS[1], max_tokens=9)
    engine.add(gone.request)
    engine.add(stays.request)
    engine.step()
    gone.request.cancelled = True
    finish(engine)
    assert_free(engine)
    assert len(gone.events) == 1
    assert stays.tokens == greedy(load_plain(bases["llama"], None), PROMPTS[1], 9)


def test_stop_ids_min_tokens_and_ignore_eos(bases: dict[str, Path]) -> None:
    reference = greedy(load_plain(bases["llama"], None), PROMPTS[0], 12)
    stop = frozenset({reference[3]})
    first = reference.index(reference[3])
    engine = make_engine(bases["llama"], "llama")
    stops = Asked(PROMPTS[0], max_tokens=12, stop_ids=stop)
    ignores = Asked(PROMPTS[0], max_tokens=12, stop_ids=stop, ignore_eos=True)
    barred = Asked(PROMPTS[0], max_tokens=12, stop_ids=stop, min_tokens=12)
    finish(engine, stops, ignores, barred)
    assert stops.tokens == reference[: first + 1]
    assert stops.events[-1].finish == "stop"  # type: ignore[union-attr]
    assert ignores.tokens == reference
    assert ignores.events[-1].finish == "length"  # type: ignore[union-attr]
    assert not stop & set(barred.tokens)


def test_seeded_sampling_does_not_depend_on_company(bases: dict[str, Path]) -> None:
    options = {"max_tokens": 20, "temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 7}
    alone, together = Asked(PROMPTS[0], **options), Asked(PROMPTS[0], **options)
    other_seed = Asked(PROMPTS[0], **{**options, "seed": 8})
    finish(make_engine(bases["llama"], "llama"), alone)
    finish(make_engine(bases["llama"], "llama"), Asked(PROMPTS[3], max_tokens=30), together, other_seed)
    assert alone.tokens == together.tokens
    assert alone.tokens != other_seed.tokens


def test_requests_that_cannot_be_answered(bases: dict[str, Path]) -> None:
    engine = make_engine(bases["llama"], "llama", limits=Limits(queue=1))
    with pytest.raises(PromptTooLong, match="at most 512"):
        engine.add(Asked([5] * 500, max_tokens=20).request)
    with pytest.raises(InvalidRequest, match="no tokens"):
        engine.add(Asked([], max_tokens=2).request)
    with pytest.raises(InvalidRequest, match="token id 4000"):
        engine.add(Asked([4000], max_tokens=2).request)
    with pytest.raises(UnsupportedRequest, match="head"):
        engine.add(Asked([4]).request)
    engine.add(Asked([4], max_tokens=1).request)
    with pytest.raises(Overloaded):
        engine.add(Asked([4], max_tokens=1).request)
    encoder = make_engine(bases["bert"], "bert")
    for ask in (Sampling(2), Score(((5,),))):
        with pytest.raises(UnsupportedRequest, match="encoder"):
            encoder.add(Asked([4], None, ask).request)
    with pytest.raises(PromptTooLong, match="513 tokens; at most 512"):
        encoder.add(Asked([4] * 513, None, Embed()).request)


@pytest.mark.parametrize(
    ("ask", "weight", "words"),
    [
        (Score(()), 1.0, "no continuations"),
        (Score(((5,), ())), 1.0, "continuation 2 has no tokens"),
        (Score(((5, 259),)), 1.0, "token id 259"),
        (Score(((-1,),)), 1.0, "token id -1"),
        (Score(((5,) * 513,)), 1.0, "the longest continuation 513; together at most 512"),
        (Embed("max"), 1.0, "pooling is 'max'"),
        (Embed(), 0.0, "weight is 0.0"),
        (Embed(), float("inf"), "weight is inf"),
        (Embed(), float("nan"), "weight is nan"),
    ],
)
def test_asks_that_make_no_sense(bases: dict[str, Path], ask: Ask, weight: float, words: str) -> None:
    engine = make_engine(bases["llama"], "llama")
    with pytest.raises(InvalidRequest, match=words):
        engine.add(Asked([4], None, ask, weight=weight).request)
    assert not engine.busy


def test_what_the_cache_could_never_hold_is_refused(bases: dict[str, Path]) -> None:
    engine = make_engine(bases["llama"], "llama", limits=Limits(cache_tokens=200))
    with pytest.raises(PromptTooLong, match="180 tokens and max_tokens 30; together at most 200"):
        engine.add(Asked([5] * 180, max_tokens=30).request)
    fits = Asked([5] * 180, max_tokens=20)
    finish(engine, fits)
    assert len(fits.tokens) == 20


def test_a_bad_seed_fails_alone(bases: dict[str, Path]) -> None:
    engine = make_engine(bases["llama"], "llama")
    before, bad, after = (
        Asked(PROMPTS[0], max_tokens=3),
        Asked(PROMPTS[1], max_tokens=3, temperature=1.0, seed=2**70),
        Asked(PROMPTS[2], max_tokens=3),
    )
    finish(engine, before, bad, after)
    assert bad.error is not None
    assert len(before.tokens) == len(after.tokens) == 3


def test_classification_passes_a_generation_that_must_wait(bases: dict[str, Path], tmp_path: Path) -> None:
    classifier = make_adapter(bases["llama"], tmp_path / "c", "llama", labels=4)
    engine = make_engine(bases["llama"], "llama", limits=Limits(rows=1))
    long, waits = Asked(PROMPTS[0], max_tokens=60), Asked(PROMPTS[1], max_tokens=4)
    label = Asked(PROMPTS[2], adapter_of(classifier, "llama", labels=True))
    for item in (long, waits, label):
        engine.add(item.request)
    settle(engine.loader)
    engine.step()
    assert label.logits.shape == (4,)
    assert not waits.events
    finish(engine)
    assert waits.tokens == greedy(load_plain(bases["llama"], None), PROMPTS[1], 4)


def test_the_base_passes_adapters_that_wait_for_a_slot(bases: dict[str, Path], tmp_path: Path) -> None:
    folders = [make_adapter(bases["llama"], tmp_path / f"c{i}", "llama", labels=4, seed=i) for i in range(2)]
    writer = make_adapter(bases["llama"], tmp_path / "w", "llama", seed=5)
    engine = make_engine(bases["llama"], "llama", resident=1)
    writes = Asked(PROMPTS[0], adapter_of(writer, "llama", labels=False), max_tokens=20)
    blocked = [Asked(PROMPTS[1], adapter_of(folder, "llama", labels=True)) for folder in folders]
    bare = Asked(PROMPTS[2], max_tokens=3)
    for item in (writes, *blocked, bare):
        engine.add(item.request)
    settle(engine.loader)
    for _ in range(3):
        engine.step()
    assert len(bare.tokens) == 3
    assert not blocked[0].events
    finish(engine)
    assert all(item.logits.shape == (4,) for item in blocked)


def test_cancelled_requests_do_not_fill_the_queue(bases: dict[str, Path]) -> None:
    engine = make_engine(bases["llama"], "llama", limits=Limits(rows=1, queue=2))
    runs = Asked(PROMPTS[0], max_tokens=30)
    engine.add(runs.request)
    engine.step()
    given_up = [Asked(PROMPTS[1], max_tokens=3) for _ in range(2)]
    for item in given_up:
        engine.add(item.request)
        item.request.cancelled = True
    engine.step()
    last = Asked(PROMPTS[2], max_tokens=3)
    finish(engine, last)
    assert len(last.tokens) == 3
    assert not any(item.events for item in given_up)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score.weight": torch.ones(4, 31)}, "shape"),
        ({"score.weight": torch.ones(4)}, "shape"),
        ({"score.bias": torch.ones(5)}, "bias"),
    ],
)
def test_a_head_that_does_not_fit_fails_alone(
    bases: dict[str, Path], tmp_path: Path, change: dict[str, torch.Tensor], words: str
) -> None:
    folder = make_adapter(bases["llama"], tmp_path / "c", "llama", labels=4)
    good = adapter_of(folder, "llama", labels=True)
    read = good.read()
    weights = LoraWeights(read.modules, {**read.head, **change})
    bad = Asked(PROMPTS[0], Adapter("sha256:bad", lambda: weights, "last"))
    odd = Asked(PROMPTS[0], Adapter("sha256:odd", good.read, "mean"))
    pooled = Asked(PROMPTS[0], Adapter("sha256:pooled", good.read, "pooler"))
    fine, bare = Asked(PROMPTS[1], good), Asked(PROMPTS[2], max_tokens=3)
    finish(make_engine(bases["llama"], "llama"), bad, odd, pooled, fine, bare)
    assert isinstance(bad.error, CorruptAdapter)
    assert words in str(bad.error)
    assert isinstance(odd.error, CorruptAdapter)
    assert isinstance(pooled.error, CorruptAdapter)
    assert fine.logits.shape == (4,)
    assert len(bare.tokens) == 3


@pytest.mark.parametrize(
    "sizes",
    [
        {"resident": 0},
        {"host_bytes": -1},
        {"prefix_bytes": -1},
        {"limits": Limits(rows=0)},
        {"limits": Limits(step_tokens=0)},
        {"limits": Limits(chunk_tokens=0)},
        {"limits": Limits(cache_tokens=0)},
        {"limits": Limits(queue=0)},
    ],
)
def test_sizes_that_leave_no_room_are_refused(bases: dict[str, Path], sizes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be at least"):
        make_engine(bases["llama"], "llama", **sizes)


def test_sampling_that_makes_no_sense_is_refused(bases: dict[str, Path]) -> None:
    engine = make_engine(bases["llama"], "llama")
    for wrong in ({"max_tokens": 0}, {"max_tokens": -100}, {"top_p": 0.0}, {"logprobs": -1}, {"temperature": -1.0}):
        with pytest.raises(InvalidRequest, match=next(iter(wrong))):
            engine.check(Asked(PROMPTS[0], **{"max_tokens": 3, **wrong}).request)


def test_a_stop_id_beyond_the_vocabulary_is_no_ones_trouble(bases: dict[str, Path]) -> None:
    engine = make_engine(bases["llama"], "llama")
    asked = Asked(PROMPTS[0], max_tokens=3, min_tokens=3, stop_ids=frozenset({10**6}))
    finish(engine, asked)
    assert len(asked.tokens) == 3


def test_a_prefix_that_cannot_be_kept_costs_nobody_an_answer(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(bases["llama"], "llama")

    def none(*_: object) -> None:
        raise MemoryError("no room for a copy")

    monkeypatch.setattr(engine.runner.cache, "read", none)
    asked = Asked(list(range(3, 80)), max_tokens=4)
    finish(engine, asked)
    assert len(asked.tokens) == 4


def test_a_poolers_adapter_changes_its_own_rows_only(bases: dict[str, Path], tmp_path: Path) -> None:
    targets = ["query", "pooler.dense"]
    folders = [
        make_adapter(bases["bert"], tmp_path / f"p{i}", "bert", seed=i, labels=3, targets=targets) for i in range(2)
    ]
    engine = make_engine(bases["bert"], "bert")
    prompts = [PROMPTS[0], list(range(3, 40))]
    asked = [Asked(p, adapter_of(folder, "bert", labels=True)) for p in prompts for folder in (*folders, folders[0])]
    finish(engine, *asked)
    for item, folder in zip(asked, [*folders, folders[0]] * 2, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([list(item.request.tokens)])
            logits = load_peft(bases["bert"], folder, 3)(input_ids=ids).logits[0]
        torch.testing.assert_close(item.logits, logits, rtol=1e-4, atol=1e-4)
