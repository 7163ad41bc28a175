"""Recipes of pairs become versions that answer, with the metrics that a slow reading of their rows gives."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from adapterhub.base.source import open_base
from adapterhub.data.files import read_examples
from adapterhub.errors import ConfigError
from adapterhub.pipeline.build import BuildResult, build
from adapterhub.pipeline.pairs import preference_of, retrieval_of
from adapterhub.pipeline.prepare import make_spec
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry
from adapterhub.runtime.hub import AdapterHub
from tests.adapters import load_peft
from tests.pipeline.toys import write_recipe, write_rows
from tests.tiny import byte_tokenizer, make_tiny_base
from tests.training.jobs import Recorder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
TRAINING = {"steps": 30, "batch_size": 8, "learning_rate": 5e-3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))


def pairs(count: int, seed: int) -> list[dict[str, Any]]:
    dice = random.Random(seed)
    rows = []
    for n in range(count):
        letter = "ABCDEFGH"[n % 8]
        text = letter + "".join(dice.choice((letter, letter, ".", "-")) for _ in range(6))
        rows.append({"text": text, "positive": f"<{letter * 3}>"} | ({"negative": f"<{letter}?>"} if n % 3 else {}))
    return rows


def preferences(count: int, seed: int) -> list[dict[str, Any]]:
    dice = random.Random(seed)
    return [
        {"prompt": "".join(dice.choices("uvw", k=4)), "chosen": "a" * dice.randint(1, 3), "rejected": "bb"}
        for _ in range(count)
    ]


def train(folder: Path, kind: str, make: Any, **changes: Any) -> BuildResult:
    for split, count, seed in (("train", 64, 0), ("validation", 16, 1), ("test", 24, 2)):
        write_rows(folder / f"{kind}-{split}.jsonl", make(count, seed))
    data = {split: f"{kind}-{split}.jsonl" for split in ("train", "validation", "test")}
    path = write_recipe(folder, "toy", kind=kind, data=data, training=TRAINING, **changes)
    return build(load_recipe(path), Registry(folder / "registry"), Recorder())


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_an_embedding_recipe_becomes_a_version_that_answers(tmp_path: Path, family: str) -> None:
    make_tiny_base(tmp_path / "base", family)
    result = train(tmp_path, "embedding", pairs, prompt={"template": "t: {text}"})
    assert set(result.metrics) == {"recall_at_1", "recall_at_5", "mrr"}
    assert result.metrics["recall_at_1"].value > 0.5
    assert result.measured_on == "test"
    assert json.loads(json.dumps(result.to_record()))["metrics"]["mrr"].keys() == {"value", "low", "high"}
    registry = Registry(tmp_path / "registry")
    version = registry.resolve("toy")
    assert (version.card().kind, version.spec().kind, version.spec().pooling) == ("embedding", "embedding", "mean")
    assert registry.verify() == []
    # The mean of the last hidden states that plain PEFT gives is what the hub answers.
    model = load_peft(tmp_path / "base", version.path, None, vectors=True)
    rows = pairs(24, 2)
    texts = sorted({row[name] for row in rows for name in row})
    vectors = {}
    with AdapterHub(open_base(str(tmp_path / "base")), registry) as hub:
        for text, found in zip(texts, hub.embed("toy", texts), strict=True):
            ids = torch.tensor([byte_tokenizer()(f"t: {text}")["input_ids"]])
            with torch.no_grad():
                vectors[text] = normalize(model(input_ids=ids).last_hidden_state[0].mean(0), dim=0)
            torch.testing.assert_close(found.vector, vectors[text], rtol=1e-4, atol=1e-5)
    # And the metrics are those of its vectors, counted one by one.
    pool = {row[name] for row in rows for name in ("positive", "negative") if name in row}
    places = []
    for row in rows:
        right = {each["positive"] for each in rows if each["text"] == row["text"]}
        own = float(vectors[row["text"]] @ vectors[row["positive"]])
        places.append(1 + sum(float(vectors[row["text"]] @ vectors[each]) > own + 1e-6 for each in pool - right))
    assert result.metrics["recall_at_1"].value == pytest.approx(sum(place == 1 for place in places) / 24)
    assert result.metrics["recall_at_5"].value == pytest.approx(sum(place <= 5 for place in places) / 24)
    assert result.metrics["mrr"].value == pytest.approx(sum(1 / place for place in places) / 24)


def test_a_preference_recipe_becomes_a_generation_task(tmp_path: Path) -> None:
    result = train(tmp_path, "preference", preferences)
    assert set(result.metrics) == {"preference_accuracy"}
    assert result.metrics["preference_accuracy"].value == 1.0
    registry = Registry(tmp_path / "registry")
    version = registry.resolve("toy")
    assert (version.card().kind, version.spec().kind, version.spec().prompt.style) == ("generation",) * 2 + ("chat",)
    assert version.card().recipe["kind"] == "preference"
    assert version.card().recipe["training"]["beta"] == 0.1
    with AdapterHub(open_base(str(tmp_path / "base")), registry) as hub:
        assert hub.predict("toy", ["uvw"], max_tokens=4)[0].completion is not None
        # The metric by the hub's scores of adapter and base, EOS counted in.
        examples = list(read_examples(tmp_path / "preference-test.jsonl", "preference"))
        assert preference_of(hub, hub.target("toy"), examples) == result.metrics
        reversed_rows = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in preferences(24, 2)]
        write_rows(tmp_path / "reversed.jsonl", reversed_rows)
        wrong = list(read_examples(tmp_path / "reversed.jsonl", "preference"))
        assert preference_of(hub, hub.target("toy"), wrong)["preference_accuracy"].value == 0.0


def test_a_text_of_two_right_answers_and_a_shared_one_are_passed_over(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "positive": "x"},
        {"text": "a", "positive": "y"},
        {"text": "b", "positive": "y", "negative": "z"},
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    spec = make_spec(*spec_of(tmp_path, "embedding"))
    near = {"a": (1.0, 0.0), "b": (0.0, 1.0), "x": (0.6, 0.0), "y": (0.9, 0.1), "z": (0.5, 0.2)}

    def ask(inputs: Any) -> Any:
        for fields in inputs:
            yield type("Answer", (), {"vector": near[fields["text"]]})

    found = retrieval_of(spec, list(read_examples(tmp_path / "rows.jsonl", "embedding")), ask)
    # a finds x behind y, which is right too, and before z; b finds z before y.
    assert found["recall_at_1"].value == pytest.approx(2 / 3)
    assert found["mrr"].value == pytest.approx((1 + 1 + 1 / 2) / 3)


def spec_of(folder: Path, kind: str, **changes: Any) -> Any:
    path = write_recipe(folder, "toy", kind=kind, **changes)
    return load_recipe(path), open_base(str(folder / "base")), ()


def test_what_a_kind_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only 'generation' and 'preference' have"):
        make_spec(*spec_of(tmp_path, "embedding", prompt={"style": "chat"}))
    make_tiny_base(tmp_path / "bert", "bert")
    recipe, _, _ = spec_of(tmp_path, "preference", base="./bert")
    with pytest.raises(ConfigError, match=r"kind is 'preference', but base .* is an encoder"):
        make_spec(recipe, open_base(str(tmp_path / "bert")), ())
    assert make_spec(*spec_of(tmp_path, "preference")).kind == "generation"
