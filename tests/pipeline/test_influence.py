"""Which rows of a pool are like a target's, by gradients on a tiny base: those of its task, whatever their texts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.base.source import Base, open_base
from adapterhub.data.example import Example
from adapterhub.errors import DataError, UsageError
from adapterhub.pipeline.influence import answer_of, influence_of, read_target
from adapterhub.training import gradient_store
from adapterhub.training.gradient_store import Adapter, stored_gradients
from tests.pipeline.toys import write_rows
from tests.tiny import make_tiny_base
from tests.training.jobs import example

ANSWERS = {"colour": ("red", "blue"), "size": ("small", "large"), "sound": ("loud", "quiet")}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return open_base(str(make_tiny_base(tmp_path / "tiny")))


def pooled(each: int, seed: int = 0) -> tuple[list[Example], list[str]]:
    """Rows of three tasks over the same random letters, and whose each is: only the answers tell."""
    dice = random.Random(seed)
    tasks = [task for task in ANSWERS for _ in range(each)]
    dice.shuffle(tasks)
    texts = ["".join(dice.choices("abcdef ", k=dice.randint(5, 20))) for _ in tasks]
    rows = [example(text=text, label=dice.choice(ANSWERS[task])) for text, task in zip(texts, tasks, strict=True)]
    return rows, tasks


def test_the_targets_task_ranks_above_the_others(base: Base) -> None:
    pool, tasks = pooled(20)
    target, theirs = pooled(8, 1)
    for task in ANSWERS:
        wanted = [row for row, whose in zip(target, theirs, strict=True) if whose == task]
        found = influence_of(base, iter(pool), wanted, "classification")
        best = np.argsort(-found)[:20]
        assert sum(tasks[row] == task for row in best) >= 15, task  # chance: 7


def test_rows_without_an_answer_have_no_influence(base: Base) -> None:
    pool, _ = pooled(2)
    heard: list[int] = []
    found = influence_of(
        base,
        [pool[0], example(text="what"), *pool[1:]],
        [*pool, example(text="is")],
        "classification",
        None,
        heard.append,
    )
    assert np.isnan(found).tolist() == [False, True] + [False] * 5
    assert heard == [6]
    with pytest.raises(DataError, match="the target has no rows"):
        influence_of(base, pool, [example(text="is")], "classification")


def test_every_kind_has_its_answers() -> None:
    def answer(kind: Any, **fields: Any) -> str | None:
        return answer_of(example(text="a", **fields), kind)

    assert answer("classification", label="x", probs={"y": 1.0}) == "x"
    assert answer("classification", probs={"x": 0.4, "y": 0.6}) == "y"
    assert answer("multilabel", labels=["x", "y"]) == "x, y"
    assert answer("multilabel", labels=[]) == "none"
    assert answer("multilabel") is None
    assert answer("generation", completion="so") == "so"
    assert answer("generation") is None


def test_messages_are_read_turn_by_turn(base: Base) -> None:
    turns = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    said = example(messages=[*turns, {"role": "assistant", "content": "so"}])
    plain = example(prompt="one\ntwo", completion="so")
    found = influence_of(base, [said, plain], [plain], "generation")
    np.testing.assert_allclose(found, [1, 1], atol=1e-5)


def test_kinds_without_answers_are_refused(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": "a", "positive": "b"}])
    with pytest.raises(UsageError, match="embedding rows have not"):
        read_target(file, "embedding")


def test_gradients_are_kept_by_what_was_read(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a text", "yes"), ("a text", "no"), ("another", "yes"), ("a text", "yes")]
    first = stored_gradients(base, rows)
    assert first.shape == (4, 512)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    assert np.array_equal(first[0], first[3])
    assert not np.allclose(first[0], first[1], atol=0.05)
    assert not np.allclose(stored_gradients(base, rows[:1], Adapter(seed=1)), first[0], atol=0.05)
    monkeypatch.setattr(gradient_store, "_fresh", None)  # nothing is computed again
    assert np.array_equal(stored_gradients(base, rows[::-1]), first[::-1])


def test_long_rows_are_cut_and_keep_their_answer(base: Base) -> None:
    long, cut, other = stored_gradients(base, [("x" * 600, "yes"), ("x" * 700, "yes"), ("x" * 600, "no")])
    assert np.array_equal(long, cut)
    assert not np.allclose(long, other, atol=0.05)
    assert np.isfinite(stored_gradients(base, [("x", "y" * 600)])).all()


def test_an_encoder_has_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Llama family, and base .* is none"):
        stored_gradients(open_base(str(make_tiny_base(tmp_path / "bert", "bert"))), [("a", "b")])
